"""The data folder: which data sets are prepared there, and preparing our own once."""

import contextlib
import fcntl
import io
import logging as python_logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

import tensorflow_datasets as tfds
from absl import logging

from tarflow_jax.data import builders
from tarflow_jax.errors import InputError, did_you_mean
from tarflow_jax.values import format_value

PREPARE_COMMAND = 'python -m tarflow_jax.data.prepare'

_VERSION = re.compile(r'(\d+)\.(\d+)\.(\d+)')
_NAME = re.compile(r'[\w/.:-]+')  # of a data set, as opposed to a path with anything in it
_LOCK_FILE = '.prepare.lock'


def data_folder(data_dir: str | os.PathLike[str], name: str = 'data_dir') -> pathlib.Path:
    """Returns the absolute path of a data folder, which need not exist yet; `name` is for errors.

    Raises:
        InputError: it is empty, a URL, or no folder that can be read.
    """
    if not os.fspath(data_dir):
        raise InputError(f'{name} is empty; give the path of a folder.')
    if '://' in os.fspath(data_dir):
        raise InputError(
            f"{name} '{os.fspath(data_dir)}' is a URL; data is read from a local folder. "
            'Mount the bucket (with gcsfuse, say) or copy it, and give the path.'
        )
    root = pathlib.Path(data_dir).expanduser().absolute()
    if root.exists() and not (root.is_dir() and os.access(root, os.R_OK | os.X_OK)):
        raise InputError(f"{name} '{root}' is not a folder that can be read; give another.")
    return root


def find_prepared(name: str, root: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the newest version of a data set that is not one of ours.

    Raises:
        InputError: it is not prepared in `root`.
    """
    prepared = prepared_folders(root)
    if name in prepared:
        return prepared[name]
    known = sorted({*builders.NAMES, *prepared})
    plain = name if _NAME.fullmatch(name) else 'NAME'
    raise InputError(
        f'there is no data set {format_value(name)} in {root}{did_you_mean(name, known)} Known '
        f'data sets: {", ".join(known)}. Others must be prepared first: {PREPARE_COMMAND} {plain} '
        f'--data_dir={root} for one of TFDS, the same with --folder=DIR --size=N for folders of '
        'images.'
    )


def class_names(name: str, data_dir: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the names of a data set's classes in their order; () if it has none, or is absent."""
    try:
        folder = prepared_folders(data_folder(data_dir)).get(name)
        text = (folder / 'label.labels.txt').read_text(encoding='utf-8') if folder else ''
    except (InputError, OSError):
        return ()
    return tuple(text.splitlines())


def prepared_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the newest version's folder of every data set below `root`, by name."""
    folders: dict[str, pathlib.Path] = {}
    for folder in sorted([*root.glob('*/*'), *root.glob('*/*/*')], key=_version):
        if _version(folder) and folder.is_dir():
            folders[folder.parent.relative_to(root).as_posix()] = folder
    return folders


def _version(folder: pathlib.Path) -> tuple[int, ...]:
    match = _VERSION.fullmatch(folder.name)
    return tuple(map(int, match.groups())) if match else ()


def prepare_own(name: str, root: pathlib.Path) -> pathlib.Path:
    """Prepares one of our data sets unless that was done before; returns its folder.

    Raises:
        InputError: it has no such variant, or cannot be prepared in `root`.
    """
    folder = root / name / builders.version(name)
    if folder.exists():
        return folder
    with (
        explain_write_errors(name, root),
        exclusive_lock(folder.parent),
        quiet_tfds(),
        tempfile.TemporaryDirectory() as downloads,
    ):
        if not folder.exists():
            logging.info("Preparing the data set '%s' in %s, this once.", name, root)
            builders.make(name, root).download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                file_format='array_record',
            )
    return folder


@contextlib.contextmanager
def explain_write_errors(name: str, root: pathlib.Path) -> Iterator[None]:
    """Turns the errors of a full disk, or a folder that cannot be written, into an `InputError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord's is a RuntimeError
        raise InputError(
            f"data set '{name}' cannot be prepared in data_dir '{root}' ({error}). Give a folder "
            'that can be written and has room, or correct the cause: the same command resumes.'
        ) from error


@contextlib.contextmanager
def exclusive_lock(folder: pathlib.Path, wait: bool = True) -> Iterator[None]:
    """Holds a folder for this process, and removes what TFDS left there when it was killed.

    TFDS writes a folder `incomplete.*` and renames it when it is complete. The kernel frees the
    lock of a killed process.

    Args:
        folder: the folder, created if it is missing.
        wait: whether to wait until no other process holds it.

    Raises:
        InputError: another process holds the folder, and `wait` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK_FILE, 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(
                f"another process is preparing '{folder.name}' in '{folder.parent}'; wait for it, "
                'or stop it.'
            ) from None
        for leftover in folder.glob('incomplete.*'):
            shutil.rmtree(leftover)
        yield


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keeps TFDS's progress bars, prints and informational log lines off the terminal."""

    def is_warning_or_ours(record: python_logging.LogRecord) -> bool:
        is_of_tfds = 'tensorflow_datasets' in record.pathname
        return not is_of_tfds or record.levelno >= python_logging.WARNING

    logger = logging.get_absl_logger()
    tfds.disable_progress_bar()
    logger.addFilter(is_warning_or_ours)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.removeFilter(is_warning_or_ours)


@contextlib.contextmanager
def explain_read_errors(folder: pathlib.Path) -> Iterator[None]:
    """Turns whatever TFDS and ArrayRecord raise at damaged files into an `InputError`."""
    try:
        yield
    except (InputError, ImportError, MemoryError):
        raise
    except Exception as error:  # they raise RuntimeError, ValueError, KeyError, ParseError, ...
        reason = str(error).strip().split('\n')[0]
        raise InputError(
            f'the prepared data set in {folder} cannot be read; it is damaged or incomplete '
            f'({type(error).__name__}: {reason}). Delete that folder and run again: our own data '
            f'sets are prepared again, others are prepared with {PREPARE_COMMAND}.'
        ) from error
