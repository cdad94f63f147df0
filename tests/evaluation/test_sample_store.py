"""Samples that are kept until an evaluation is done."""

import os

import numpy as np
import pytest

from tarflow_jax.evaluation.sample_store import SampleStore

SHAPE = (2, 3, 1)
IMAGES = np.arange(10 * 6, dtype=np.uint8).reshape(10, *SHAPE)


@pytest.fixture
def folder(tmp_path):
    """Ten samples in three files."""
    store = SampleStore(tmp_path, {'seed': 0}, SHAPE)
    for start, num_redrawn in (0, 0), (4, 2), (8, 1):
        store.add(IMAGES[start : start + 4], num_redrawn)
        store.write()
    return tmp_path


def test_they_are_found_again(folder):
    store = SampleStore(folder, {'seed': 0}, SHAPE)
    assert (store.count, store.num_redrawn) == (10, 3)
    np.testing.assert_array_equal(store.read(3, 9), IMAGES[3:9])
    assert SampleStore(folder, {'seed': 1}, SHAPE).count == 0


@pytest.mark.parametrize('damage', ['cut', 'absent', 'shape', 'floats'])
def test_those_after_a_damaged_file_are_drawn_again(folder, damage, caplog):
    first, second, third = sorted(folder.glob('drawn-*/*.npy'))
    if damage == 'cut':
        second.write_bytes(second.read_bytes()[:-1])
    if damage == 'absent':
        second.unlink()
    if damage == 'shape':
        np.save(second, IMAGES[4:8, :1])
    if damage == 'floats':
        np.save(second, IMAGES[4:8].astype(np.float32))
    store = SampleStore(folder, {'seed': 0}, SHAPE)
    assert store.count == 4
    assert f'{third} cannot be used and is drawn again' in caplog.text
    store.add(IMAGES[4:], 0)
    store.write()
    np.testing.assert_array_equal(store.read(0, 10), IMAGES)
    assert first.exists()
    assert not third.exists()


def test_no_file_stays_open(folder):
    before = os.listdir('/proc/self/fd')
    store = SampleStore(folder, {'seed': 0}, SHAPE)
    store.add(IMAGES, 0)
    store.write()
    assert store.read(10, 20).any()
    assert len(os.listdir('/proc/self/fd')) == len(before)


def test_nothing_of_them_remains_at_the_end(folder):
    SampleStore(folder, {'seed': 0}, SHAPE).remove()
    assert list(folder.iterdir()) == []
