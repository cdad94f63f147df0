"""Data sets on disk, opened for random access.

A data set is a folder that TFDS prepared as ArrayRecord. Our own builders are prepared on first
use; any other data set is used once it stands prepared in the data folder.
"""

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
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from tarflow_jax.data.builders import BUILDERS
from tarflow_jax.errors import InputError

Batch = dict[str, np.ndarray]

_VERSION = re.compile(r'(\d+)\.(\d+)\.(\d+)')
_LOCK_FILE = '.prepare.lock'
_DECODE_ROWS = 1024


class Split(Protocol):
    """Random access to a split's examples."""

    in_memory: bool

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The examples at n indices: image uint8 [n, H, W, C], label int32 [n] (-1: no label)."""
        ...


class ArraySplit:
    """A split held in memory: images uint8 [n, H, W, C] and labels int32 [n]."""

    in_memory = True

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images = images
        self._labels = labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        rows = np.asarray(indices)
        return {'image': self._images[rows], 'label': self._labels[rows]}


class RecordSplit:
    """A split whose examples are read and decoded when they are asked for."""

    in_memory = False

    def __init__(self, builder: tfds.core.DatasetBuilder, name: str, has_labels: bool):
        self._has_labels = has_labels
        self._folder = pathlib.Path(builder.data_dir)
        with _reading(self._folder):
            self._shards = builder.info.splits[name].file_instructions
            self._source = builder.as_data_source(name)

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        with _reading(self._folder):
            examples = self._source.__getitems__([int(i) for i in indices])
            images = np.stack([example['image'] for example in examples])
            labels = [example['label'] if self._has_labels else -1 for example in examples]
        return {'image': images, 'label': np.array(labels, np.int32)}

    def check_shards(self) -> None:
        """Reads the last example of every file, so that damage shows before time is spent."""
        self.__getitems__(np.cumsum([shard.examples_in_shard for shard in self._shards]) - 1)

    def load(self) -> ArraySplit:
        """Decodes the whole split into memory."""
        with _reading(self._folder):
            parts = [
                self.__getitems__(range(start, min(start + _DECODE_ROWS, len(self))))
                for start in range(0, len(self), _DECODE_ROWS)
            ]
            return ArraySplit(
                np.concatenate([part['image'] for part in parts]),
                np.concatenate([part['label'] for part in parts]),
            )


class Dataset:
    """A prepared data set: what its examples look like, and its splits.

    Attributes:
        name: the name it was opened by.
        image_shape: (H, W, C) of every image.
        num_classes: labels are the integers below it; 0 where the set has no labels.
        num_levels: pixels are the integers below it; 256 unless the set's metadata has another.
    """

    def __init__(self, name: str, builder: tfds.core.DatasetBuilder, in_memory_bytes: int):
        features = dict(builder.info.features.items())
        self.name = name
        self.image_shape = _image_shape(name, features)
        self.num_classes: int = getattr(features.get('label'), 'num_classes', 0)
        self.num_levels: int = builder.info.metadata.get('num_levels', 256)
        self._builder = builder
        self._in_memory_bytes = in_memory_bytes
        self._splits: dict[str, Split] = {}

    def split(self, name: str) -> Split:
        """The split 'train' or 'test', or another one of the set's.

        Raises:
            InputError: if there is no such split, or its files are damaged.
        """
        if name not in self._splits:
            self._splits[name] = self._open_split(name)
        return self._splits[name]

    def _open_split(self, name: str) -> Split:
        names = sorted(self._builder.info.splits)
        if name not in names:
            raise InputError(
                f"data set '{self.name}' has no split '{name}'; it has {', '.join(names)}."
            )
        with _quiet_tfds():
            split = RecordSplit(self._builder, name, has_labels=self.num_classes > 0)
            if len(split) * int(np.prod(self.image_shape)) <= self._in_memory_bytes:
                return split.load()
            split.check_shards()
        return split


def open_dataset(
    name: str, data_dir: str | os.PathLike[str], *, in_memory_bytes: int = 2**30
) -> Dataset:
    """Opens a data set, and prepares it in `data_dir` first if it is one of ours.

    Args:
        name: one of our builders, or a TFDS data set that stands in `data_dir` prepared as
            ArrayRecord ('cifar10', 'imagenet_resized/64x64').
        data_dir: a local or mounted folder, with TFDS's layout.
        in_memory_bytes: splits of at most this decoded size are held in memory.

    Raises:
        InputError: if the name is unknown, the folder cannot be read or written, the prepared
            files are damaged or no ArrayRecord, or the images are not uint8 of one fixed shape.
    """
    root = _data_folder(data_dir)
    if name in BUILDERS:
        folder = _prepare_once(name, root)
    else:
        folder = _find_prepared(name, root)
    with _quiet_tfds(), _reading(folder):
        builder = tfds.builder_from_directory(folder)
        if name in BUILDERS and 'num_levels' not in builder.info.metadata:
            raise FileNotFoundError('no metadata.json with num_levels')
        _check_format(builder)
        return Dataset(name, builder, in_memory_bytes)


def _data_folder(data_dir: str | os.PathLike[str]) -> pathlib.Path:
    if '://' in os.fspath(data_dir):
        raise InputError(
            f"data_dir '{os.fspath(data_dir)}' is an address; data is read from a local folder. "
            'Mount the bucket (with gcsfuse, say) or copy it, and give the path.'
        )
    root = pathlib.Path(data_dir).expanduser().absolute()
    if root.exists() and not (root.is_dir() and os.access(root, os.R_OK | os.X_OK)):
        raise InputError(f"data_dir '{root}' is not a folder that can be read; give another.")
    return root


def _find_prepared(name: str, root: pathlib.Path) -> pathlib.Path:
    prepared = _prepared_folders(root)
    if name in prepared:
        return prepared[name]
    known = sorted(BUILDERS.keys() | prepared.keys())
    nearest = difflib.get_close_matches(name, known, n=1)
    raise InputError(
        f"there is no data set '{name}' in {root}"
        + (f"; did you mean '{nearest[0]}'?" if nearest else '.')
        + f' Known there: {", ".join(known)}. Another TFDS data set is known once it is prepared:'
        f" tfds.builder(NAME, data_dir='{root}').download_and_prepare(file_format='array_record')."
    )


def _prepared_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The newest version's folder of every data set below `root`, by name or name/config."""
    folders: dict[str, pathlib.Path] = {}
    for folder in sorted([*root.glob('*/*'), *root.glob('*/*/*')], key=_version):
        if _version(folder) and folder.is_dir():
            folders[folder.parent.relative_to(root).as_posix()] = folder
    return folders


def _version(folder: pathlib.Path) -> tuple[int, ...]:
    match = _VERSION.fullmatch(folder.name)
    return tuple(map(int, match.groups())) if match else ()


def _prepare_once(name: str, root: pathlib.Path) -> pathlib.Path:
    """The folder of one of our data sets, prepared by this process if by no other."""
    folder = root / name / str(BUILDERS[name].VERSION)
    if folder.exists():
        return folder
    try:
        with _only_process(folder.parent):
            if not folder.exists():
                _prepare(name, root)
    except (OSError, RuntimeError) as error:  # ArrayRecord's is a RuntimeError, on a full disk
        raise InputError(
            f"data set '{name}' cannot be prepared in data_dir '{root}' ({error}). Nothing was "
            'left half-made; give a folder that can be written and has room.'
        ) from error
    return folder


@contextlib.contextmanager
def _only_process(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other process is in here; the kernel frees the lock of a killed one."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK_FILE, 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare(name: str, root: pathlib.Path) -> None:
    """Runs the builder; TFDS writes a folder `incomplete.*` and renames it when it is whole."""
    for leftover in (root / name).glob('incomplete.*'):
        shutil.rmtree(leftover)  # of a killed process, since only one is ever in here
    logging.info("Preparing the data set '%s' in %s, this once.", name, root)
    with _quiet_tfds(), tempfile.TemporaryDirectory() as downloads:
        BUILDERS[name](data_dir=root).download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            file_format='array_record',
        )


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
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
def _reading(folder: pathlib.Path) -> Iterator[None]:
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
            'sets are prepared anew, others are prepared with TFDS.'
        ) from error


def _check_format(builder: tfds.core.DatasetBuilder) -> None:
    written = builder.info.file_format
    if written is not tfds.core.FileFormat.ARRAY_RECORD:
        raise InputError(
            f'the data set in {builder.data_dir} is prepared as {written.value}, which cannot be '
            "read in any order; prepare it with download_and_prepare(file_format='array_record')."
        )


def _image_shape(
    name: str, features: dict[str, tfds.features.FeatureConnector]
) -> tuple[int, int, int]:
    feature = features.get('image')
    shape = getattr(feature, 'shape', ())
    if feature is None or len(shape) != 3 or None in shape or feature.np_dtype != np.uint8:
        raise InputError(
            f"data set '{name}' cannot be used: it needs a feature 'image' of uint8 and one fixed "
            f'shape (H, W, C), and has {feature}.'
        )
    return shape
