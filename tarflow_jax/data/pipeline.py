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
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Endless batches: every example once an epoch, each epoch in an order of its own.

    The batch of a step depends on (seed, step) alone, however many processes share it: process p
    gets the p-th contiguous slice of its rows. Batches run across the edges of epochs.

    Args:
        split: the examples.
        batch_size: rows of a step over all processes.
        seed: picks the orders.
        first_step: the step of the first batch; starting late costs nothing.
        process_index: this process.
        process_count: all processes.

    Returns:
        An iterator over image uint8 [b, H, W, C] and label int32 [b], b = batch_size //
        process_count. Its `close()` ends the threads that read ahead.

    Raises:
        InputError: if the split is smaller than a batch, or the processes cannot share one evenly.
    """
    rows = _rows_per_process(batch_size, process_count)
    if batch_size > len(split):
        raise InputError(
            f'batch_size {batch_size} is larger than the split of {len(split)} examples; '
            f'choose at most {len(split)}.'
        )
    shares = grain.MapDataset.source(_ShuffledIndices(len(split), rows, seed))
    shares = shares[first_step * process_count + process_index :: process_count]
    return _read(shares, split.__getitems__, split)


def eval_batches(
    split: Split, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator[Batch]:
    """Batches with every example exactly once, in order, the last ones padded.

    Every process gets the same number of batches, of the same size.

    Args:
        split: the examples.
        batch_size: rows of a batch over all processes.
        process_index: this process.
        process_count: all processes.

    Returns:
        An iterator over image uint8 [b, H, W, C], label int32 [b] and mask float32 [b], which is 1
        for an example and 0 for padding (copies of the split's last example), b = batch_size //
        process_count. Its `close()` ends the threads that read ahead.

    Raises:
        InputError: if the processes cannot share a batch evenly.
    """
    rows = _rows_per_process(batch_size, process_count)
    num_batches = -(-len(split) // batch_size)
    shares = grain.MapDataset.range(num_batches * process_count)
    shares = shares[process_index::process_count]
    return _read(shares, functools.partial(_masked_rows, split, rows), split)


def _rows_per_process(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f'batch_size {batch_size} cannot be shared by {process_count} process(es): '
            f'it must be a positive multiple of {process_count}.'
        )
    return batch_size // process_count


def _read(
    shares: grain.MapDataset, read: Callable[..., Batch], split: Split
) -> grain.DatasetIterator[Batch]:
    """One call of `read` a batch, never one an example, some batches ahead of the reader."""
    options = _MEMORY_READS if split.in_memory else _DISK_READS
    return iter(shares.map(read).to_iter_dataset(options))


def _masked_rows(split: Split, rows: int, share: int) -> Batch:
    indices = np.arange(share * rows, (share + 1) * rows)
    batch = split.__getitems__(np.minimum(indices, len(split) - 1))
    return batch | {'mask': (indices < len(split)).astype(np.float32)}


class _ShuffledIndices:
    """A Grain source of index arrays [rows]: the epochs' orders end to end, cut into shares.

    Grain's own `shuffle` computes each index apart, which costs more than a small training step;
    an order sorted whole costs next to nothing.
    """

    def __init__(self, num_examples: int, rows: int, seed: int):
        self._num_examples = num_examples
        self._rows = rows
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._sort_order)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> np.ndarray:
        epoch, start = divmod(index * self._rows, self._num_examples)
        indices = self._order(epoch)[start : start + self._rows]
        missing = self._rows - len(indices)
        return np.concatenate([indices, self._order(epoch + 1)[:missing]]) if missing else indices

    def _sort_order(self, epoch: int) -> np.ndarray:
        """A permutation from raw Philox words, which NumPy keeps the same in every version."""
        key = np.array([self._seed % 2**64, epoch], np.uint64)
        words = np.random.Philox(key=key).random_raw(self._num_examples)
        return np.argsort(words, kind='stable')
