"""Prepares standard streams and early signal handling, and formats the message of a failure.

Imports nothing that takes time, so that all of it holds before anything else does.
"""

import contextlib
import io
import logging as python_logging
import os
import signal
import sys
import traceback
from typing import TextIO

# A closed terminal (SIGHUP) is as good a reason to save as a preempted machine.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def prepare() -> None:
    """Prepares the process; must come before whatever takes time or opens files.

    From then on a signal of `SIGNALS` ends the process with a line and status 128 plus its number,
    and standard output and error take everything that is written, read or not.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, _leave)
    _open_missing_streams()
    sys.stdout, sys.stderr = (_lossy(stream) for stream in (sys.stdout, sys.stderr))


def plain_warnings() -> None:
    """Prints log records as `warning: TEXT`, and hides those below the level of a warning."""
    from absl import logging  # takes time

    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(_LevelFormatter())


def explain(error: BaseException) -> tuple[int, object, str]:
    """Returns the exit status and message of an error, and the traceback of an unexpected one."""
    from tarflow_jax.errors import InputError, RunError

    if isinstance(error, InputError):
        return 2, error, ''
    if isinstance(error, RunError):
        return 1, error, ''
    if isinstance(error, OSError):  # of a full disk, while samples or scores are written
        return 1, f'{error}. Fix the cause and run the same command.', ''
    if isinstance(error, KeyboardInterrupt):
        return 130, 'interrupted. Run the same command again.', ''
    if not isinstance(error, Exception):  # Stopped, which knows its status
        return getattr(error, 'status', 1), error, ''
    return 1, f'{type(error).__name__}: {error}', traceback.format_exc()


class _LevelFormatter(python_logging.Formatter):
    """The level of a record, and what it says."""

    def format(self, record: python_logging.LogRecord) -> str:
        return f'{record.levelname.lower()}: {super().format(record)}'


def _leave(number: int, _) -> None:
    """Ends the process at once: an import that is under way would swallow an exception."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        name = signal.Signals(number).name
        os.write(2, f'error: stopped by {name}. Run the same command again.\n'.encode())
    os._exit(128 + number)


def _open_missing_streams() -> None:
    """Opens closed standard streams (`>&-`) on /dev/null.

    Otherwise the next file that is opened gets the number of the stream, and what libraries print.
    """
    for descriptor, name in enumerate(('stdin', 'stdout', 'stderr')):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
            os.set_inheritable(descriptor, True)
            mode = 'w' if descriptor else 'r'
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


class _LossyFile(io.FileIO):
    """A file that silently drops what it cannot write."""

    def write(self, data) -> int:
        try:
            written = super().write(data)
        except OSError:
            return len(data)
        return len(data) if written is None else written


def _lossy(stream: TextIO) -> TextIO:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_LossyFile(stream.fileno(), 'w', closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=getattr(stream, 'line_buffering', False),
        write_through=getattr(stream, 'write_through', False),
    )
