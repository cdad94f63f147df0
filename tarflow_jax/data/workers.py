"""Worker processes, which leave Ctrl-C to the process they serve and end with it."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import TypeVar

from tarflow_jax.errors import RunError

Task = TypeVar('Task')
Result = TypeVar('Result')


@contextlib.contextmanager
def map_unordered(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Iterator[Result]]:
    """Yields an iterator over a function's results of tasks, in the order in which they are done.

    Leaving the context ends the processes at once, whatever they are doing. A single worker is this
    process itself. Several are new processes, which inherit no threads and no devices; the function
    and the tasks must be picklable.

    Raises:
        RunError: a worker was killed.
    """
    if workers == 1:
        yield map(function, tasks)
        return
    context = multiprocessing.get_context('spawn')
    reader, writer = context.Pipe(duplex=False)
    executor = concurrent.futures.ProcessPoolExecutor(workers, context, _end_with_pipe, (reader,))
    try:
        with delayed_signals():
            futures = [executor.submit(function, task) for task in tasks]
        yield (future.result() for future in concurrent.futures.as_completed(futures))
    except BrokenProcessPool as error:
        raise RunError(
            'a worker process was killed, perhaps out of memory. Finished work is kept: the same '
            'command resumes, and fewer --workers need less memory.'
        ) from error
    finally:
        writer.close()  # which ends the workers
        executor.shutdown(cancel_futures=True)
        reader.close()


def _end_with_pipe(reader: Connection) -> None:
    """Ends this worker once nobody can write into the pipe, as when its parent was killed."""
    _end_after(lambda: reader.poll(None))


def end_with_parent() -> None:
    """Ends this worker once its parent has ended, which it would not notice while it waits."""
    if parent := multiprocessing.parent_process():
        _end_after(parent.join)


def _end_after(wait: Callable[[], object]) -> None:
    def watch():
        wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def delayed_signals() -> Iterator[None]:
    """Delays SIGINT and SIGTERM; processes that are started meanwhile never receive them.

    The kernel may deliver SIGINT to any other thread, and Python then calls its handler in the main
    thread in spite of the mask: so the handler is replaced, too.
    """
    resource_tracker.ensure_running()  # starting it later would unblock the signals
    is_main = threading.current_thread() is threading.main_thread()
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda *_: received.append(1)) if is_main else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_main:
            signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)
