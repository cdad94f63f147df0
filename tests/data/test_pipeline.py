import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from runs import ROOT, TIMEOUT

from tarflow_jax.data.pipeline import eval_batches, train_batches
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError


def take(batches, count):
    """The next `count` batches, with the threads that read ahead ended."""
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def labels(split, count, **options):
    """The labels [count, b] of the first batches of training."""
    return np.stack([batch['label'] for batch in take(train_batches(split, **options), count)])


def test_images_stay_with_their_labels(counting_split):
    for batch in take(train_batches(counting_split(1000), batch_size=64, seed=3), 20):
        low, high = batch['image'][:, 0, 0, 0], batch['image'][:, 0, 0, 1]
        np.testing.assert_array_equal(low + 256 * high.astype(np.int32), batch['label'])


@pytest.mark.parametrize(('num_examples', 'batch_size'), [(100, 32), (96, 32), (32, 32), (7, 1)])
def test_every_epoch_is_a_permutation_in_another_order(counting_split, num_examples, batch_size):
    epochs = 5
    count = -(-epochs * num_examples // batch_size)
    seen = labels(counting_split(num_examples), count, batch_size=batch_size, seed=0)
    orders = seen.ravel()[: epochs * num_examples].reshape(epochs, num_examples)
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(num_examples))
    assert len({tuple(order) for order in orders}) == epochs
    assert tuple(range(num_examples)) not in {tuple(order) for order in orders}


def test_a_batch_is_a_function_of_seed_and_step(counting_split):
    split = counting_split(100)
    first = labels(split, 10, batch_size=32, seed=1)
    np.testing.assert_array_equal(first, labels(split, 10, batch_size=32, seed=1))
    assert not np.array_equal(first, labels(split, 10, batch_size=32, seed=2))


def test_no_order_of_one_seed_comes_again_under_the_next(counting_split):
    split = counting_split(50)
    orders = [tuple(row) for s in range(8) for row in labels(split, 8, batch_size=50, seed=s)]
    assert len(set(orders)) == 64


def test_shuffling_is_even(counting_split):
    """Each example stands at each place about equally often (chi-square, 99.99 % level)."""
    orders = labels(counting_split(10), 5000, batch_size=10, seed=5)
    counts = np.stack([np.bincount(column, minlength=10) for column in orders.T])
    assert ((counts - 500) ** 2 / 500).sum() < 138  # 81 degrees of freedom


def test_the_order_never_changes(counting_split):
    """A run that is resumed under another version of a library sees the same batches."""
    seen = labels(counting_split(10), 2, batch_size=10, seed=42)
    np.testing.assert_array_equal(
        seen, [[7, 1, 6, 4, 3, 5, 9, 0, 2, 8], [4, 9, 5, 3, 0, 2, 7, 1, 6, 8]]
    )


@pytest.mark.parametrize('first_step', [1, 3, 4, 50])
def test_resuming_equals_no_interruption(counting_split, first_step):
    split = counting_split(100)
    whole = labels(split, first_step + 5, batch_size=32, seed=0)
    resumed = labels(split, 5, batch_size=32, seed=0, first_step=first_step)
    np.testing.assert_array_equal(resumed, whole[first_step:])


def test_starting_late_costs_nothing(counting_split):
    start = time.process_time()
    labels(counting_split(1000), 1, batch_size=8, seed=0, first_step=10**12)
    assert time.process_time() - start < 0.5


def shared_rows(batch_size, num_processes):
    """Rows of a batch for each process, now and then apart from one another."""
    owners = np.random.default_rng(0).permutation(np.arange(batch_size) % num_processes)
    return [np.flatnonzero(owners == process) for process in range(num_processes)]


@pytest.mark.parametrize('num_processes', [2, 4])
def test_processes_hold_the_rows_of_one_global_batch(counting_split, num_processes):
    split = counting_split(100)
    shared = dict(batch_size=32, seed=0, first_step=2)
    whole = labels(split, 8, **shared)
    for rows in shared_rows(32, num_processes):
        np.testing.assert_array_equal(labels(split, 8, **shared, rows=rows), whole[:, rows])


class CountingReads:
    """A split that notes which of its examples are read."""

    in_memory = True

    def __init__(self, split):
        self._split = split
        self.read = []

    def __len__(self):
        return len(self._split)

    def __getitems__(self, indices):
        self.read.extend(indices)
        return self._split.__getitems__(indices)


@pytest.mark.parametrize('batches', [eval_batches, lambda *a, **k: train_batches(*a, **k, seed=0)])
def test_a_process_reads_its_own_rows_only(counting_split, batches):
    split = CountingReads(counting_split(64))
    taken = take(batches(split, batch_size=64, rows=np.array([3, 4, 60])), 1)
    assert len(split.read) % 3 == 0
    np.testing.assert_array_equal(taken[0]['label'], split.read[:3])


@pytest.mark.parametrize('num_examples', [1, 31, 32, 33, 100])
@pytest.mark.parametrize('num_processes', [1, 2, 4])
def test_eval_covers_every_example_once_in_order(counting_split, num_examples, num_processes):
    split = counting_split(num_examples)
    shares = shared_rows(32, num_processes)
    per_process = [list(eval_batches(split, batch_size=32, rows=rows)) for rows in shares]
    assert {len(batches) for batches in per_process} == {-(-num_examples // 32)}
    seen = []
    for step in zip(*per_process, strict=True):
        whole = np.full(32, -1)
        for rows, batch in zip(shares, step, strict=True):
            assert len(batch['image']) == len(rows)
            whole[rows] = batch['label']
        seen.extend(whole)
    np.testing.assert_array_equal(seen[:num_examples], np.arange(num_examples))
    assert set(seen[num_examples:]) <= {num_examples - 1}


def test_the_digits_from_disk_and_memory_give_the_same_batches(prepared):
    runs = [
        take(train_batches(digits.split('train'), batch_size=128, seed=0), 3)
        for digits in (
            open_dataset('digits', prepared),
            open_dataset('digits', prepared, in_memory_bytes=0),
        )
    ]
    for ours, theirs in zip(*runs, strict=True):
        np.testing.assert_array_equal(ours['image'], theirs['image'])
        np.testing.assert_array_equal(ours['label'], theirs['label'])


def test_a_batch_from_memory_costs_well_under_a_millisecond(prepared):
    split = open_dataset('digits', prepared).split('train')
    batches = train_batches(split, batch_size=128, seed=0)
    next(batches)
    start = time.process_time()
    take(batches, 500)
    assert (time.process_time() - start) / 500 < 1e-3


@pytest.mark.parametrize('first_step', [0, 3])
def test_worker_processes_give_the_same_batches(prepared, first_step):
    split = open_dataset('digits', prepared, in_memory_bytes=0).split('train')
    how = dict(batch_size=600, seed=0, first_step=first_step, rows=np.arange(5, 600, 2))
    runs = [take(train_batches(split, **how, workers=n), 7) for n in (0, 2)]
    for ours, theirs in zip(*runs, strict=True):
        np.testing.assert_array_equal(ours['image'], theirs['image'])
        np.testing.assert_array_equal(ours['label'], theirs['label'])


LEAVE = """
import signal, sys, threading
from tarflow_jax.data import pipeline, sources

def read():
    for limit, workers in ((0, 0), (2**30, 0), (0, 2)):
        digits = sources.open_dataset('digits', sys.argv[1], in_memory_bytes=limit)
        split = digits.split('train')
        batches = pipeline.train_batches(split, batch_size=128, seed=0, workers=workers)
        next(batches)
        if workers:
            told = threading.Event()
            signal.signal(signal.SIGINT, lambda *_: told.set())
            print('reading', flush=True)
            told.wait()
            batches.close()

if __name__ == '__main__':
    read()
"""


def test_leaving_in_the_middle_is_quiet(prepared, tmp_path):
    """Also when Ctrl-C reaches the worker processes, as it does in a terminal."""
    script = tmp_path / 'leave.py'
    script.write_text(LEAVE)
    process = subprocess.Popen(
        [sys.executable, str(script), str(prepared)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    with process:
        assert process.stdout.readline() == 'reading\n'
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out, err) == (0, '', '')


def test_a_batch_larger_than_the_split(counting_split):
    with pytest.raises(InputError, match=r'batch_size 101 .* 100 examples'):
        train_batches(counting_split(100), batch_size=101, seed=0)


@pytest.mark.parametrize('batches', [eval_batches, lambda *a, **k: train_batches(*a, **k, seed=0)])
@pytest.mark.parametrize('batch_size', [0, -8])
def test_a_batch_without_rows(counting_split, batches, batch_size):
    with pytest.raises(InputError, match=f'batch_size must be at least 1; got {batch_size}'):
        batches(counting_split(100), batch_size=batch_size)
