"""Folders that TFDS prepared as ArrayRecord, read in any order."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from tarflow_jax.data.dataset import ArraySplit, Batch, Dataset, Split
from tarflow_jax.data.examples import ExampleReader
from tarflow_jax.data.folder import PREPARE_COMMAND, explain_read_errors, quiet_tfds
from tarflow_jax.errors import InputError


def open_records(
    name: str,
    folder: pathlib.Path,
    *,
    image_size: int | None,
    in_memory_bytes: int,
    needs_levels: bool,
) -> Dataset:
    """Opens a prepared folder; `sources.open_dataset` describes the arguments and the errors.

    With `needs_levels`, a folder whose metadata has no `num_levels` counts as damaged.
    """
    with quiet_tfds(), explain_read_errors(folder):
        info = tfds.builder_from_directory(folder).info
        if needs_levels and 'num_levels' not in info.metadata:
            raise FileNotFoundError('no metadata.json with num_levels')
        _check_format(folder, info)
        reader = ExampleReader(name, dict(info.features.items()), image_size)
        num_levels = _checked_levels(info.metadata)

    def open_split(spec: str) -> Split:
        """Opens a split or slice, which must exist; small ones are read into memory whole."""
        with quiet_tfds(), explain_read_errors(folder):
            split = RecordSplit(folder, info.splits[spec].file_instructions, reader)
            if len(split) * int(np.prod(reader.image_shape)) <= in_memory_bytes:
                return split.load()
            split.check_shards()
            return split

    return Dataset(
        name,
        image_shape=reader.image_shape,
        num_classes=reader.num_classes,
        num_levels=num_levels,
        splits=info.splits,
        open_split=open_split,
        class_names=reader.class_names,
    )


class RecordSplit:
    """A split whose examples are read and decoded when they are used."""

    in_memory = False

    def __init__(self, folder: pathlib.Path, instructions: Sequence[Any], reader: ExampleReader):
        """Opens a part of a prepared folder.

        Args:
            folder: the folder of the records, for messages.
            instructions: TFDS's `file_instructions` of the split or slice.
            reader: makes batches of records.
        """
        self._folder = folder
        self._shard_ends = np.cumsum([part.take for part in instructions])
        self._reader = reader
        self._records = ArrayRecordDataSource(instructions)

    def __len__(self) -> int:
        return len(self._records)

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        with explain_read_errors(self._folder):
            return self._reader(self._records.__getitems__([int(i) for i in indices]))

    def check_shards(self) -> None:
        """Reads the last example of every file, so that damage shows before time is spent."""
        self.__getitems__(self._shard_ends - 1)

    def load(self) -> ArraySplit:
        """Decodes the whole split into memory."""
        batch = self.__getitems__(range(len(self)))
        return ArraySplit(batch['image'], batch['label'])


def _checked_levels(metadata: Any) -> int:
    levels = (metadata or {}).get('num_levels', 256)
    if type(levels) is not int or not 2 <= levels <= 256:
        raise ValueError(f'metadata.json has num_levels={levels!r}, not 2 to 256')
    return levels


def _check_format(folder: pathlib.Path, info: tfds.core.DatasetInfo) -> None:
    written = info.file_format
    if written is not tfds.core.FileFormat.ARRAY_RECORD:
        raise InputError(
            f'the data set in {folder} is prepared as {written.value}, which does not support '
            f'random access. Delete that folder and prepare it with {PREPARE_COMMAND}, or with '
            "download_and_prepare(file_format='array_record')."
        )
