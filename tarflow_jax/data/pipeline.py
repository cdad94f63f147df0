"""Batches of a split, read through Grain.

A training batch is a pure function of (seed, step), so there is no iterator state to save.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Generator, Iterator

import grain
import numpy as np
from absl import flags

from tarflow_jax.data.dataset import Batch, Split
from tarflow_jax.data.workers import delayed_signals, end_with_parent
from tarflow_jax.errors import InputError

# Batches that are read ahead until `close()` is called.
Batches = grain.DatasetIterator[Batch] | Generator[Batch, None, None]

# Reading a batch from memory costs less than passing it between threads, so one thread is enough.
_MEMORY_READS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
_DISK_READS = grain.ReadOptions(num_threads=8, prefetch_buffer_size=16)
# A worker decodes one batch after the other: more threads there would wait for one another.
_WORKER_READS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
_WORKER_BATCHES = 2  # ready, for each worker


def train_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rows: np.ndarray | None = None,
    workers: int = 0,
) -> Batches:
    """Reads endless batches: every example once an epoch, each epoch in an order of its own.

    The batch of a step depends on (seed, step) alone, however many processes share it: each reads
    some of its rows. A batch may span two epochs.

    Args:
        split: the examples.
        batch_size: rows of a step over all processes.
        seed: picks the orders.
        first_step: the step of the first batch; starting late costs nothing.
        rows: which rows of every batch to read, [b] in 0..batch_size - 1; all by default.
        workers: number of processes that read ahead, whole batches each; 0 reads ahead in threads
            of this process. Ignored for a split in memory. Does not change the batches.

    Returns:
        An iterator over image uint8 [b, H, W, C] and label int32 [b]. Its `close()` ends the
        threads and processes that read ahead.

    Raises:
        InputError: the split is smaller than a batch.
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

    return _read(batches[first_step:], read, split, workers)


def eval_batches(split: Split, *, batch_size: int, rows: np.ndarray | None = None) -> Batches:
    """Reads batches with every example exactly once, in order, the last one padded.

    Args:
        split: the examples.
        batch_size: rows of a batch over all processes.
        rows: which rows of every batch to read, [b] in 0..batch_size - 1; all by default.

    Returns:
        An iterator over image uint8 [b, H, W, C] and label int32 [b]; padding is copies of the
        split's last example. Its `close()` ends the threads that read ahead.

    Raises:
        InputError: a batch has no rows.
    """
    rows = _checked_rows(batch_size, rows)

    def read(batch):
        indices = batch * batch_size + rows
        return split.__getitems__(np.minimum(indices, len(split) - 1))

    return _read(grain.MapDataset.range(-(-len(split) // batch_size)), read, split)


def _checked_rows(batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    if batch_size < 1:
        raise InputError(f'batch_size must be at least 1; got {batch_size}.')
    return np.arange(batch_size) if rows is None else rows


def _read(
    batches: grain.MapDataset, read: Callable[..., Batch], split: Split, workers: int = 0
) -> Batches:
    """Calls `read` once per batch, never once per example, some batches ahead of the reader."""
    if split.in_memory:
        return iter(batches.map(read).to_iter_dataset(_MEMORY_READS))
    if not workers:
        return iter(batches.map(read).to_iter_dataset(_DISK_READS))
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_WORKER_BATCHES)
    ahead = batches.map(read).to_iter_dataset(_WORKER_READS)
    return _worker_batches(iter(ahead.mp_prefetch(options, lambda *_: end_with_parent())))


def _worker_batches(batches: grain.DatasetIterator[Batch]) -> Generator[Batch, None, None]:
    """Yields batches of worker processes, which never see SIGINT or SIGTERM.

    Ctrl-C reaches all processes of a terminal; this one saves, and ends its workers when it closes
    the iterator. Grain starts them with the first batch.
    """
    if not flags.FLAGS.is_parsed():  # as outside of `absl.app.run`; Grain's workers require it
        flags.FLAGS.mark_as_parsed()
    with contextlib.closing(batches):
        yield _first(batches)  # a variable would hold its shared memory
        yield from batches


def _first(batches: Iterator[Batch]) -> Batch:
    with delayed_signals():
        return next(batches)


class _ShuffledIndices:
    """A Grain source of index arrays [batch_size]: the epochs' orders end to end, cut into batches.

    Grain's own `shuffle` computes every index by itself, which takes longer than a small training
    step; sorting one permutation per epoch takes almost no time.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int):
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._sort_order)

    def __reduce__(self):  # for worker processes; orders are sorted there
        return type(self), (self._num_examples, self._batch_size, self._seed)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> np.ndarray:
        epoch, start = divmod(index * self._batch_size, self._num_examples)
        indices = self._order(epoch)[start : start + self._batch_size]
        missing = self._batch_size - len(indices)
        return np.concatenate([indices, self._order(epoch + 1)[:missing]]) if missing else indices

    def _sort_order(self, epoch: int) -> np.ndarray:
        """Returns a permutation; NumPy keeps raw Philox words the same in every version."""
        key = np.array([self._seed % 2**64, epoch], np.uint64)
        words = np.random.Philox(key=key).random_raw(self._num_examples)
        return np.argsort(words, kind='stable')
