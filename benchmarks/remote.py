"""Objects in processes of their own, whose methods are timed there."""

import importlib.metadata
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import time
from typing import Any, NamedTuple

ROUND_SECONDS = 0.5  # of calls of one side; a single short one finds cores asleep, caches cold


class Timed(NamedTuple):
    """What a call returned, its seconds, and the most memory that was ever held."""

    result: Any
    seconds: float
    peak_bytes: int


class Remote:
    """An object that is made in a new process; an error there ends the benchmark.

    Its method `peak_device_bytes` returns the most memory it held on an accelerator, 0 without one.
    """

    def __init__(self, make, *args):
        context = multiprocessing.get_context('spawn')
        self._end, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, make, args), daemon=True)
        self._process.start()
        far.close()

    def call(self, method: str, *args, min_seconds: float = 0.0) -> Timed:
        """Calls a method repeatedly for `min_seconds`, and returns the mean of their seconds."""
        self._end.send((method, args, min_seconds))
        try:
            return Timed(*self._end.recv())
        except (EOFError, ConnectionError):
            raise SystemExit('a process of the benchmark failed, as it says above.') from None

    def close(self) -> None:
        self._end.send(None)
        self._process.join()


def _serve(connection, make, args):
    made = make(*args)
    while request := connection.recv():
        method, args, min_seconds = request
        start, num_calls, seconds = time.perf_counter(), 0, 0.0
        while not num_calls or seconds < min_seconds:
            result = getattr(made, method)(*args)
            num_calls, seconds = num_calls + 1, time.perf_counter() - start
        peak_bytes = made.peak_device_bytes() or _peak_host_bytes()
        connection.send((result, seconds / num_calls, peak_bytes))


def _peak_host_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rate(num_images: int, seconds: float) -> str:
    """Images a second to three digits."""
    return f'{float(f"{num_images / seconds:.3g}"):,g}'


def machine(*packages: str) -> str:
    """What the figures are measured on: GPUs, or the cores; versions of jax and other packages."""
    versions = (f'{name} {importlib.metadata.version(name)}' for name in ('jax', *packages))
    cores = f'{len(os.sched_getaffinity(0))} cores of {platform.machine()}'
    return ', '.join([*_gpus(), cores, *versions])


def _gpus() -> list[str]:
    if not shutil.which('nvidia-smi'):
        return []
    command = ('nvidia-smi', '--query-gpu=name', '--format=csv,noheader')
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
