"""The data folder: which data sets stand there prepared, and preparing our own once."""

import contextlib
import difflib
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
from tarflow_jax.errors import InputError
from tarflow_jax.values import shown

PREPARE_COMMAND = 'python -m tarflow_jax.data.prepare'

_VERSION = re.compile(r'(\d+)\.(\d+)\.(\d+)')
_LOCK_FILE = '.prepare.lock'
_HALF_PREPARED = '*.half_prepared'


def data_folder(data_dir: str | os.PathLike[str]) -> pathlib.Path:
    """The absolute path of a data folder, which need not be there yet.

    Raises:
        InputError: if it is empty, an address, or no folder that can be read.
    """
    if not os.fspath(data_dir):
        raise InputError('data_dir is empty; give the path of a folder.')
    if '://' in os.fspath(data_dir):
        raise InputError(
            f"data_dir '{os.fspath(data_dir)}' is an address; data is read from a local folder. "
            'Mount the bucket (with gcsfuse, say) or copy it, and give the path.'
        )
    root = pathlib.Path(data_dir).expanduser().absolute()
    if root.exists() and not (root.is_dir() and os.access(root, os.R_OK | os.X_OK)):
        raise InputError(f"data_dir '{root}' is not a folder that can be read; give another.")
    return root


def find_prepared(name: str, root: pathlib.Path) -> pathlib.Path:
    """The folder of the newest version of a data set that is no one of ours.

    Raises:
        InputError: if it does not stand in `root`, or only half prepared.
    """
    prepared = prepared_folders(root)
    if name in prepared:
        return prepared[name]
    halves = _half_prepared(name, root)
    if halves:
        raise InputError(
            f"data set '{name}' is only half prepared, in {halves[0]}. The command that was "
            f'preparing it ({PREPARE_COMMAND} {name} ...) goes on where it stopped.'
        )
    raise InputError(_not_there(name, root, prepared))


def prepared_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The newest version's folder of every data set below `root`, by name or name/config."""
    folders: dict[str, pathlib.Path] = {}
    for folder in sorted([*root.glob('*/*'), *root.glob('*/*/*')], key=_version):
        if _version(folder) and folder.is_dir():
            folders[folder.parent.relative_to(root).as_posix()] = folder
    return folders


def _version(folder: pathlib.Path) -> tuple[int, ...]:
    match = _VERSION.fullmatch(folder.name)
    return tuple(map(int, match.groups())) if match else ()


def _half_prepared(name: str, root: pathlib.Path) -> list[pathlib.Path]:
    folder = root / name
    inside = name and folder.is_relative_to(root) and '..' not in folder.parts
    try:
        return sorted(folder.glob(_HALF_PREPARED)) if inside else []
    except OSError:  # a name that is too long for a folder, say
        return []


def _not_there(name: str, root: pathlib.Path, prepared: dict[str, pathlib.Path]) -> str:
    known = sorted({*builders.NAMES, *prepared})
    nearest = difflib.get_close_matches(name, known, n=1)
    in_catalog = name.split('/')[0] in tfds.list_builders(with_community_datasets=False)
    catalogued = name if in_catalog else 'NAME'
    return (
        f'there is no data set {shown(name)} in {root}'
        + (f"; did you mean '{nearest[0]}'?" if nearest else '.')
        + f' Known there: {", ".join(known)}. Others are prepared first: '
        + f'{PREPARE_COMMAND} {catalogued} --data_dir={root} for '
        + ('this one of TFDS' if in_catalog else 'one of TFDS')
        + f', {PREPARE_COMMAND} NAME --folder=DIR --size=N --data_dir={root} for folders of images.'
    )


def prepare_own(name: str, root: pathlib.Path) -> pathlib.Path:
    """The folder of one of our data sets, prepared by this process if by no other.

    Raises:
        InputError: if there is no such variant of it, or it cannot be prepared in `root`.
    """
    folder = root / name / builders.version(name)
    if folder.exists():
        return folder
    try:
        with one_process(folder.parent):
            if not folder.exists():
                _prepare_own(name, root)
    except (OSError, RuntimeError) as error:  # ArrayRecord's is a RuntimeError, on a full disk
        raise cannot_prepare(name, root, error) from error
    return folder


def _prepare_own(name: str, root: pathlib.Path) -> None:
    logging.info("Preparing the data set '%s' in %s, this once.", name, root)
    with quiet_tfds(), tempfile.TemporaryDirectory() as downloads:
        builders.make(name, root).download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            file_format='array_record',
        )


def cannot_prepare(name: str, root: pathlib.Path, error: Exception) -> InputError:
    """The error for a folder that cannot be written, or a full disk."""
    return InputError(
        f"data set '{name}' cannot be prepared in data_dir '{root}' ({error}). Nothing was left "
        'half-made; give a folder that can be written and has room.'
    )


@contextlib.contextmanager
def one_process(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other process prepares here, and removes what a killed one left.

    TFDS writes a folder `incomplete.*` and renames it when it is whole. The kernel frees the lock
    of a killed process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK_FILE, 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in folder.glob('incomplete.*'):
            shutil.rmtree(leftover)
        yield


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keeps TFDS's progress bars, prints and informational log lines off the terminal."""

    def not_chatter(record: python_logging.LogRecord) -> bool:
        of_tfds = 'tensorflow_datasets' in record.pathname
        return not of_tfds or record.levelno >= python_logging.WARNING

    logger = logging.get_absl_logger()
    tfds.disable_progress_bar()
    logger.addFilter(not_chatter)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.removeFilter(not_chatter)


@contextlib.contextmanager
def reading(folder: pathlib.Path) -> Iterator[None]:
    """Turns whatever TFDS and ArrayRecord raise at damaged files into an `InputError`."""
    try:
        yield
    except (InputError, ImportError, MemoryError):
        raise
    except Exception as error:  # they raise RuntimeError, ValueError, KeyError, ParseError, ...
        reason = str(error).strip().split('\n')[0]
        raise InputError(
            f'the prepared data set in {folder} cannot be read; it is damaged or half there '
            f'({type(error).__name__}: {reason}). Delete that folder and run again: our own data '
            f'sets are prepared anew, others are prepared with {PREPARE_COMMAND}.'
        ) from error
