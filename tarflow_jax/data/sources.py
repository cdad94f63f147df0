"""Data sets on disk, opened for random access by their name.

A data set is a folder that TFDS prepared as ArrayRecord, or an .npz file. Our own builders are
prepared on first use; any other data set is used once it stands prepared in the data folder.
"""

import os
from typing import Protocol

import tensorflow_datasets as tfds

from tarflow_jax.data import builders
from tarflow_jax.data.npz import NpzFile
from tarflow_jax.data.prepared import data_folder, find_prepared, prepare_own
from tarflow_jax.data.records import RecordFolder, RecordSplit
from tarflow_jax.data.splits import ArraySplit, Batch, Split, ranges

__all__ = ['ArraySplit', 'Batch', 'Dataset', 'RecordSplit', 'Split', 'open_dataset']


class Contents(Protocol):
    """What a data set's files hold; the attributes are those of `Dataset`."""

    image_shape: tuple[int, int, int]
    num_classes: int
    num_levels: int
    splits: tfds.core.SplitDict

    def open_split(self, spec: str) -> Split:
        """Opens a split or slice that is known to be one of `splits`."""
        ...


class Dataset:
    """A data set that can be read: what its examples look like, and its splits.

    Attributes:
        name: the name it was opened by.
        image_shape: (H, W, C) of every image.
        num_classes: labels are the integers below it; 0 where the set has no labels.
        num_levels: pixels are the integers below it; 256 unless the set's metadata has another.
    """

    def __init__(self, name: str, contents: Contents):
        self.name = name
        self.image_shape = contents.image_shape
        self.num_classes = contents.num_classes
        self.num_levels = contents.num_levels
        self._contents = contents
        self._splits: dict[str, Split] = {}

    def split(self, spec: str) -> Split:
        """The split 'train' or 'test', another one of the set's, or a slice of them.

        Args:
            spec: a name, or a slice in TFDS's syntax: 'train[:90%]', 'train[1000:2000]',
                'train[-100:]', and sums of these, 'train[:50%]+test'.

        Raises:
            InputError: if there is no such split, it is empty, or its files are damaged.
        """
        if spec not in self._splits:
            ranges(spec, self._contents.splits, self.name)
            self._splits[spec] = self._contents.open_split(spec)
        return self._splits[spec]


def open_dataset(
    name: str,
    data_dir: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    in_memory_bytes: int = 2**30,
) -> Dataset:
    """Opens a data set, and prepares it in `data_dir` first if it is one of ours.

    Args:
        name: one of our builders ('digits', 'photos/64'), a TFDS data set that stands in `data_dir`
            prepared as ArrayRecord ('cifar10', 'imagenet_resized/64x64'), or the path of a file
            that ends in '.npz' (see `NpzFile`).
        data_dir: a local or mounted folder, with TFDS's layout.
        image_size: images that come in any size (imagenet2012) become RGB squares of this side in
            pixels: the shorter side is scaled to it, the centre is cut out. Images of one fixed
            shape stay as they are.
        in_memory_bytes: splits of at most this decoded size are held in memory; those of an .npz
            file always.

    Raises:
        InputError: if the name is unknown, the folder cannot be read or written, the files are
            damaged or no ArrayRecord, or the images are not uint8 of one fixed shape and there is
            no `image_size`.
    """
    if name.endswith('.npz'):
        return Dataset(name, NpzFile(name))
    root = data_folder(data_dir)
    is_own = builders.is_own(name)
    folder = prepare_own(name, root) if is_own else find_prepared(name, root)
    contents = RecordFolder(
        name,
        folder,
        image_size=image_size,
        in_memory_bytes=in_memory_bytes,
        needs_levels=is_own,
    )
    return Dataset(name, contents)
