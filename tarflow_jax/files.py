"""Files that appear complete or not at all."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tarflow_jax.errors import InputError

_unfinished: set[Path] = set()  # of this process

OTHER_WORKDIR = 'another --workdir, with --checkpoint=WORKDIR for the model of this one'


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file for reading, and nothing else: opening a FIFO would block forever.

    Raises:
      ValueError: it is a FIFO, a socket, a device or a folder.
      OSError: it cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError('it is not a file, but a FIFO, a socket, a device or a folder')
    return _BoundedReader(io.FileIO(path))


class _BoundedReader(io.BufferedReader):
    """Allocates no more for a read than the file has, whatever size a damaged header claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        num_bytes = os.fstat(self.fileno()).st_size
        return super().read(-1 if size is None or size < 0 else min(size, num_bytes))


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Yields a new binary file, which is put in the place of `path` once it is complete.

    A reader sees the old content or the new, never a part. The folder is created if it is missing.
    Whatever is raised within passes through, and so does OSError, of a full disk say: `path` is
    then as it was, and nothing is left beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}.unfinished')
    _unfinished.add(unfinished)
    try:
        with open(unfinished, 'w+b') as file:
            with contextlib.suppress(OSError):  # where there are no locks, it is never removed
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut may keep the new name and lose the bytes
            os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename = error.filename or os.fspath(path)  # or no one knows which disk is full
        raise
    finally:
        _unfinished.discard(unfinished)


def remove_own_unfinished() -> None:
    """Removes the incomplete files of this process, before it ends without an exception."""
    for unfinished in list(_unfinished):
        with contextlib.suppress(OSError):
            unfinished.unlink()


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Removes unfinished files of killed processes from a folder and its subfolders.

    Each file that is being written is locked, and the kernel releases the lock with the process.
    """
    for pattern in '.*.unfinished', '*/.*.unfinished':
        for unfinished in Path(folder).glob(pattern):
            with contextlib.suppress(OSError), open(unfinished, 'rb') as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unfinished.unlink()


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write(file)` on a file of `open_atomically`."""
    with open_atomically(path) as file:
        write(file)


def link_atomically(path: str | os.PathLike, kept: str | os.PathLike) -> None:
    """Links a file to a second name, atomically, so that its content outlives a replacement."""
    path, kept = Path(path), Path(kept)
    unfinished = kept.with_name(f'.{kept.name}.{os.getpid()}.unfinished')
    unfinished.unlink(missing_ok=True)
    try:
        os.link(path, unfinished)
    except OSError:  # a file system without links
        shutil.copyfile(path, unfinished)
    os.replace(unfinished, kept)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` to `path` as indented JSON, atomically; for the values see `json_text`."""
    text = json_text(value, indent=2) + '\n'
    write_atomically(path, lambda file: file.write(text.encode()))


def check_writable(folder: str | os.PathLike) -> None:
    """Raises InputError if there is something at `folder` into which no file can be written."""
    if os.path.lexists(folder):
        make_writable(folder, 'another --workdir')


def make_writable(folder: str | os.PathLike, instead: str = OTHER_WORKDIR) -> None:
    """Creates a folder if it is missing; raises InputError unless files can be written into it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f'{os.fspath(folder)} cannot be written to: {describe_error(error)}. Correct that, or '
            f'give {instead}.'
        ) from error


def describe_error(error: Exception) -> str:
    """Returns why something could not be written, in a line, with a remedy if there is one.

    TensorStore hides the number of the system's error in the text of a ValueError.
    """
    number = getattr(error, 'errno', None)
    text = getattr(error, 'strerror', None) or str(error).strip().partition('\n')[0]
    if number is None and (match := re.search(r"os_error_code='(\d+)'", text)):
        number = int(match[1])
        text = os.strerror(number)
    elif not isinstance(error, OSError):
        text = f'{type(error).__name__}: {text}'
    hint = _HINTS.get(number or 0, '')
    return f'{text} ({hint})' if hint else text


_FULL = 'is the disk full?'
_IN_THE_WAY = 'another file or folder is in the way: move it away'
_HINTS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EMFILE: 'if it is in a bucket: mount that with --rename-dir-limit=200000',
    errno.EROFS: 'it is mounted to be read only',
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
}


def sha256_of(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns `value` as JSON that every parser reads.

    Arrays and their scalars (NumPy, JAX) become lists and numbers, paths strings; NaN and the
    infinities, which JSON cannot say, become null. Raises TypeError for anything else unknown.
    """
    return json.dumps(_jsonable(value), indent=indent, allow_nan=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, 'tolist'):
        return _jsonable(value.tolist())
    return value
