"""Batches of a split, read through Grain.

A training batch is a pure function of (seed, step), so there is no iterator state to save.
"""

import functools
import sys
from collections.abc import Callable

import grain
import numpy as np

from tarflow_jax.data.sources import Batch, Split
from tarflow_jax.errors import InputError

# A batch from memory costs less than handing it from thread to thread, so one is enough there.
_MEMORY_READS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
_DISK_READS = grain.ReadOptions(num_threads=8, prefetch_buffer_size=16)


def train_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rows: np.ndarray | None = None,
) -> grain.DatasetIterator[Batch]:
    """Endless batches: every example once an epoch, each epoch in an order of its own.

    The batch of a step depends on (seed, step) alone, however many processes share it: each reads
    some of its rows. Batches run across the edges of epochs.

    Args:
        split: the examples.
        batch_size: rows of a step over all processes.
        seed: picks the orders.
        first_step: the step of the first batch; starting late costs nothing.
        rows: which rows of every batch to read, [b] in 0..batch_size - 1; all by default.

    Returns:
        An iterator over image uint8 [b, H, W, C] and label int32 [b]. Its `close()` ends the
        threads that read ahead.

    Raises:
        InputError: if the split is smaller than a batch.
    """
    rows = _checked_rows(batch_size, rows)
    if batch_size > len(split):
        raise InputError(
            f'batch_size {batch_size} is larger than the split of {len(split)} examples; '
            f'choose at most {len(split)}.'
        )
    batches = grain.MapDataset.source(_ShuffledIndices(len(split), batch_size, seed))

    def read(indices):
        return split.__getitems__(indices[rows])

    return _read(batches[first_step:], read, split)


def eval_batches(
    split: Split, *, batch_size: int, rows: np.ndarray | None = None
) -> grain.DatasetIterator[Batch]:
    """Batches with every example exactly once, in order, the last one padded.

    Args:
        split: the examples.
        batch_size: rows of a batch over all processes.
        rows: which rows of every batch to read, [b] in 0..batch_size - 1; all by default.

    Returns:
        An iterator over image uint8 [b, H, W, C], label int32 [b] and mask float32 [b], which is 1
        for an example and 0 for padding (copies of the split's last example). Its `close()` ends
        the threads that read ahead.

    Raises:
        InputError: if a batch has no rows.
    """
    rows = _checked_rows(batch_size, rows)

    def read(batch):
        indices = batch * batch_size + rows
        examples = split.__getitems__(np.minimum(indices, len(split) - 1))
        return examples | {'mask': (indices < len(split)).astype(np.float32)}

    return _read(grain.MapDataset.range(-(-len(split) // batch_size)), read, split)


def _checked_rows(batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    if batch_size < 1:
        raise InputError(f'batch_size must be at least 1; got {batch_size}.')
    return np.arange(batch_size) if rows is None else rows


def _read(
    batches: grain.MapDataset, read: Callable[..., Batch], split: Split
) -> grain.DatasetIterator[Batch]:
    """One call of `read` a batch, never one an example, some batches ahead of the reader."""
    options = _MEMORY_READS if split.in_memory else _DISK_READS
    return iter(batches.map(read).to_iter_dataset(options))


class _ShuffledIndices:
    """A Grain source of index arrays [batch_size]: the epochs' orders end to end, cut into batches.

    Grain's own `shuffle` computes each index apart, which costs more than a small training step;
    an order sorted whole costs next to nothing.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int):
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._sort_order)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> np.ndarray:
        epoch, start = divmod(index * self._batch_size, self._num_examples)
        indices = self._order(epoch)[start : start + self._batch_size]
        missing = self._batch_size - len(indices)
        return np.concatenate([indices, self._order(epoch + 1)[:missing]]) if missing else indices

    def _sort_order(self, epoch: int) -> np.ndarray:
        """A permutation from raw Philox words, which NumPy keeps the same in every version."""
        key = np.array([self._seed % 2**64, epoch], np.uint64)
        words = np.random.Philox(key=key).random_raw(self._num_examples)
        return np.argsort(words, kind='stable')
