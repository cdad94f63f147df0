"""A data set: random access to the examples of its splits, and slices such as 'train[:90%]'."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import tensorflow_datasets as tfds

from tarflow_jax.errors import InputError

Batch = dict[str, np.ndarray]


class Split(Protocol):
    """Random access to a split's examples; it can be pickled, to be passed between processes."""

    in_memory: bool

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Returns n examples: image uint8 [n, H, W, C], label int32 [n] (-1: no label)."""
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


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set that can be read: the form of its examples, and its splits.

    Attributes:
        name: the name it was opened by.
        image_shape: (H, W, C) of every image.
        num_classes: labels are the integers below it; 0 where the set has no labels.
        num_levels: pixels are the integers below it; 256 unless the set's metadata has another.
        splits: the splits and their sizes.
        open_split: opens a split or slice that is known to be one of these.
        class_names: the names of the classes; none where the set has none.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_levels: int
    splits: tfds.core.SplitDict
    open_split: Callable[[str], Split]
    class_names: tuple[str, ...] = ()
    _opened: dict[str, Split] = dataclasses.field(default_factory=dict)

    def split(self, spec: str, key: str = '') -> Split:
        """Returns the split 'train' or 'test', another one of the set's, or a slice of them.

        Args:
            spec: a name, or a slice in TFDS's syntax: 'train[:90%]', 'train[1000:2000]',
                'train[-100:]', and sums of these, 'train[:50%]+test'.
            key: the key of the config that has it, for messages.

        Raises:
            InputError: there is no such split, it is empty, or its files are damaged.
        """
        if spec not in self._opened:
            try:
                parts = ranges(spec, self.splits)
            except Exception as error:
                raise self._no_split(spec, key) from error
            if not any(part.stop > part.start for part in parts):
                raise self._no_split(spec, key)
            self._opened[spec] = self.open_split(spec)
        return self._opened[spec]

    def _no_split(self, spec: str, key: str) -> InputError:
        names = sorted(self.splits)
        sizes = [f'{name} ({self.splits[name].num_examples} examples)' for name in names]
        where = f' ({key})' if key else ''
        return InputError(
            f"data set '{self.name}' has no split '{spec}'{where}; it has {', '.join(sizes)}, and "
            f"slices of them that hold an example, such as '{names[-1]}[:90%]', "
            f"'{names[-1]}[100:200]' or '{names[-1]}[-100:]', and sums of slices with '+'."
        )


def one_split(name: str, size: int) -> tfds.core.SplitDict:
    """Returns one split of `size` examples, for `ranges`, of a data set that is not TFDS's."""
    info = tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0, filename_template=None)
    return tfds.core.SplitDict([info])


def ranges(spec: str, splits: tfds.core.SplitDict) -> list[slice]:
    """Returns the examples of a split or slice, with TFDS's syntax and boundaries.

    Raises whatever TFDS does if there is no such split: ValueError, AssertionError, ...
    """
    parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(splits)
    sizes = [splits[part.splitname].num_examples for part in parts]
    return [
        slice(part.from_ or 0, size if part.to is None else part.to)
        for part, size in zip(parts, sizes, strict=True)
    ]
