"""Worker processes that stop when they are told to, and never outlive the process they serve."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import Self, TypeVar

from tarflow_jax.errors import RunError

Task = TypeVar('Task')
Result = TypeVar('Result')

_stop: Event | None = None  # in a worker: set once its work is not wanted any more


class Stopped(Exception):
    """A worker's work is not wanted any more."""


class Workers:
    """Maps functions over tasks in other processes. A context manager.

    The processes are new ones, which inherit no threads and no devices. A single worker is this
    process itself.
    """

    def __init__(self, count: int):
        self._count = count
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._count > 1:
            context = multiprocessing.get_context('spawn')
            self._stop = context.Event()
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._count, context, _start_worker, (self._stop,)
            )
            self._exit.callback(self._executor.shutdown, cancel_futures=True)
            self._exit.callback(self._stop.set)
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """The results in the order in which they are done.

        The function and the tasks must be picklable, and the function call `check_stop` often.

        Raises:
            RunError: if a worker was killed.
        """
        if self._count == 1:
            yield from map(function, tasks)
            return
        # This starts processes, which inherit it: Ctrl-C is for this one, which tells them.
        with _delayed_ctrl_c():
            futures = [self._executor.submit(function, task) for task in tasks]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RunError(
                'a worker process was killed, by want of memory it may be. What is finished is '
                'kept: the same command goes on; fewer --workers need less memory.'
            ) from error


def check_stop() -> None:
    """Raises `Stopped` in a worker whose work is not wanted any more."""
    if _stop is not None and _stop.is_set():
        raise Stopped


@contextlib.contextmanager
def _delayed_ctrl_c() -> Iterator[None]:
    """Blocks Ctrl-C in what is started here, and keeps one for this process until the end.

    The kernel may deliver it to any other thread, and Python's handler then runs in the main one
    whatever that blocks: so it is replaced, too.
    """
    is_main = threading.current_thread() is threading.main_thread()
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda *_: received.append(1)) if is_main else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_main:
            signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A worker waiting for work would never notice that its parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
