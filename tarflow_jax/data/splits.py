"""Splits of a data set: random access to examples, and slices such as 'train[:90%]'."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds

from tarflow_jax.errors import InputError

Batch = dict[str, np.ndarray]


class Split(Protocol):
    """Random access to a split's examples; processes hand it to one another by pickle."""

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


class Range(NamedTuple):
    """The examples `start` to `stop - 1` of the split `name`."""

    name: str
    start: int
    stop: int


def split_sizes(sizes: Mapping[str, int]) -> tfds.core.SplitDict:
    """Splits of these many examples, for `ranges`, of a data set that is not TFDS's."""
    return tfds.core.SplitDict(
        tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0, filename_template=None)
        for name, size in sizes.items()
    )


def ranges(spec: str, splits: tfds.core.SplitDict, dataset_name: str) -> list[Range]:
    """What a split's name or slice stands for, with TFDS's syntax and boundaries.

    Args:
        spec: 'train', 'train[:90%]', 'train[1000:2000]', 'train[-100:]', 'train[:50%]+test'.
        splits: the splits that there are.
        dataset_name: for the message.

    Raises:
        InputError: if that is no slice of these splits, or one without examples.
    """
    try:
        parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(splits)
        found = [
            Range(
                part.splitname,
                part.from_ or 0,
                splits[part.splitname].num_examples if part.to is None else part.to,
            )
            for part in parts
        ]
    except Exception as error:  # TFDS raises ValueError, AssertionError, NotImplementedError, ...
        raise _no_split(spec, splits, dataset_name) from error
    if not any(stop > start for _, start, stop in found):
        raise _no_split(spec, splits, dataset_name)
    return found


def _no_split(spec: str, splits: tfds.core.SplitDict, dataset_name: str) -> InputError:
    sizes = [f'{name} ({splits[name].num_examples} examples)' for name in sorted(splits)]
    name = sorted(splits)[-1]
    return InputError(
        f"data set '{dataset_name}' has no split '{spec}'; it has {', '.join(sizes)}, and slices "
        f"of them that hold an example, such as '{name}[:90%]', '{name}[100:200]' or "
        f"'{name}[-100:]', and sums of slices with '+'."
    )
