"""Signals that end a program which still has something to save.

A signal may arrive while the main thread waits for a device, when Python runs no handler. A second
thread therefore receives it as well, and ends the process if the main thread does not respond.
"""

import contextlib
import functools
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tarflow_jax import files
from tarflow_jax.parallel import cluster, distributed
from tarflow_jax.terminal import SIGNALS

RESPONSE_SECONDS = 20  # for the main thread to respond; cloud providers kill after 30
_FAST_RESPONSE_SECONDS = 0.5  # for the main thread to respond if there is nothing to save
_ACKNOWLEDGE_SECONDS = 1  # before a first Ctrl-C is acknowledged with a line
_POLL_SECONDS = 0.05  # between two polls of the waiting thread

RESUMES = 'The same command resumes.'
RESTARTS = 'The same command starts again.'


class Stopped(BaseException):
    """A signal ended the work; the message says what was saved and how to resume.

    Like KeyboardInterrupt, it is not an Exception, so that error handlers do not catch it.

    Attributes:
      signal: the signal, the same in every process.
      status: the exit status that reports it, 128 plus its number.
    """

    def __init__(self, number: int, message: str = RESUMES):
        self.signal = signal.Signals(number)
        self.status = 128 + number
        super().__init__(f'stopped by {self.signal.name}. {message}')


class Stop:
    """Remembers the first signal of `SIGNALS`; a second Ctrl-C interrupts at once.

    Of several processes, each hands what it has received to every train step (`signal_array`) and
    records what the step reports (`record`), or calls `check` where there is no step, so that all
    stop at the same point.

    A context manager of the main thread. Within it, a process whose main thread has not read
    `signal` within `RESPONSE_SECONDS` of its arrival ends itself with the signal's status; at a
    second Ctrl-C sooner, and on a terminal a first one is answered with a line after a second.

    Attributes:
      received: the signal that this process has received.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._noted: signal.Signals | None = None
        self._acknowledged = threading.Event()  # the main thread knows
        self._response_seconds: float = RESPONSE_SECONDS
        self._immediate_message = ''  # the message, where a signal ends the work at once
        self._before = {}

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that stops the run, the same in every process."""
        number = self.received if jax.process_count() == 1 else self._noted
        if number:
            self._acknowledged.set()
        return number

    def signal_array(self, mesh: Mesh) -> jax.Array:
        """The number of the signal received, 0 for none: int32 [mesh.size], laid over `mesh`."""
        return _number_on(mesh, self.received or 0)

    def record(self, number) -> None:
        """Takes note of the largest number over all devices, as a step reports it."""
        if number and self._noted is None:
            self._noted = signal.Signals(int(number))

    def check(self, message: str = RESUMES) -> None:
        """Raises Stopped once any process has received a signal.

        Collective: every process must call it.
        """
        if jax.process_count() > 1:
            self.record(distributed.all_max(self.received or 0))
        if number := self.signal:
            raise Stopped(number, message)

    @contextlib.contextmanager
    def immediate(self, message: str = RESTARTS) -> Iterator[None]:
        """A part of the program with nothing to save: a signal raises Stopped wherever it is."""
        self._immediate_message, self._response_seconds = message, _FAST_RESPONSE_SECONDS
        try:
            if self.received:
                self._end_at_once(self.received)
            yield
        finally:
            self._immediate_message, self._response_seconds = '', RESPONSE_SECONDS

    def _end_at_once(self, number):
        self._acknowledged.set()
        raise Stopped(number, self._immediate_message)

    def __enter__(self):
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
                self._before[number] = signal.signal(number, self._receive)
        self._wakeup, self._wakeup_end = socket.socketpair()
        self._wakeup_end.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(
            self._wakeup_end.fileno(), warn_on_full_buffer=False
        )
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._acknowledged.set()
        signal.set_wakeup_fd(self._wakeup_before)
        self._wakeup_end.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)
        if self._immediate_message:
            self._end_at_once(number)

    def _watch(self):
        with self._wakeup:
            while received := self._wakeup.recv(1):
                if received[0] in self._before:
                    self._wait_for_main_thread(signal.Signals(received[0]))

    def _wait_for_main_thread(self, number) -> None:
        """Returns once the main thread knows of a signal; ends the process if that takes long."""
        start = time.monotonic()
        is_answered = number != signal.SIGINT or not os.isatty(2)  # nobody waits for an answer
        while not self._acknowledged.wait(_POLL_SECONDS):
            seconds = time.monotonic() - start
            if seconds > self._response_seconds or self._is_repeated():
                _end(number)
            if seconds > _ACKNOWLEDGE_SECONDS and not is_answered:
                is_answered = True
                print(
                    'Stopping when the operation on the device has ended, after at most '
                    f'{self._response_seconds:g} seconds. Ctrl-C again ends it immediately.',
                    file=sys.stderr,
                    flush=True,
                )

    def _is_repeated(self) -> bool:
        """Whether a Ctrl-C has come since the last one."""
        has_come, _, _ = select.select([self._wakeup], [], [], 0)
        return bool(has_come) and self._wakeup.recv(1) == bytes([signal.SIGINT])


def _end(number: signal.Signals) -> None:
    """Ends a process whose main thread waits for something that takes too long."""
    stopped = Stopped(
        number,
        'The running operation did not finish in time and was aborted. The same command resumes '
        'from what was last saved.',
    )
    files.remove_own_unfinished()
    print(f'error: {stopped}', file=sys.stderr, flush=True)
    cluster.abort_all(stopped.status, stopped)
    os._exit(stopped.status)


def sharding(mesh: Mesh) -> NamedSharding:
    """The layout of an array with one element for each device."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


@functools.lru_cache(maxsize=4)
def _number_on(mesh: Mesh, number: int) -> jax.Array:
    element = np.array([number], np.int32)
    return jax.make_array_from_callback((mesh.size,), sharding(mesh), lambda _: element)
