"""`old.pth` and `new.pth` of tests/golden/inception are the same tensors, written by PyTorch."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from golden.inception import recipe

from tarflow_jax.errors import InputError
from tarflow_jax.formats.torchfile import read_state_dict

GOLDEN = Path(recipe.__file__).parent
OLD, NEW = GOLDEN / 'old.pth', GOLDEN / 'new.pth'
NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


@pytest.mark.parametrize('path', [OLD, NEW], ids=['old', 'new'])
def test_what_pytorch_writes_is_read(path):
    tensors = read_state_dict(path)
    matrix = recipe.uniform('matrix', (3, 4))
    assert list(tensors) == [*(f'norm.{part}' for part in NORM), 'matrix', 'transposed', 'half']
    np.testing.assert_array_equal(tensors['matrix'], matrix)
    np.testing.assert_array_equal(tensors['transposed'], matrix.T)
    np.testing.assert_array_equal(tensors['half'], matrix.astype(np.float16))
    np.testing.assert_array_equal(tensors['norm.running_var'], np.ones(2, np.float32))
    count = tensors['norm.num_batches_tracked']
    assert (count.shape, count.dtype, int(count)) == ((), np.int64, 0)


def test_a_truncated_file_is_refused(tmp_path):
    data, path = OLD.read_bytes(), tmp_path / 'model.pth'
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match='damaged: fetch it again'):
            read_state_dict(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match='does not exist'):
        read_state_dict(tmp_path / 'nothing.pth')


@pytest.fixture
def write(tmp_path):
    """Writes a file whose object and storages' names are these pickles; returns its path."""

    def write(value: bytes, keys: bytes = pickle.dumps([]), storages=b'', little_endian=True):
        start = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
        machine = pickle.dumps({'little_endian': little_endian}, 2)
        path = tmp_path / 'model.pth'
        path.write_bytes(start + machine + value + keys + storages)
        return path

    return write


def tensor(length=4, size=4, view=b'N'):
    """A pickle of {'a': vector of `size` elements of a storage of `length`}."""
    storage = b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x007'
    storage += b'X\x03\x00\x00\x00cpuJ' + struct.pack('<i', length) + view + b'tQ'
    shape = b'K\x00(J' + struct.pack('<i', size) + b't(K\x01t\x89}'
    return (
        b'\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n('
        + storage
        + shape
        + b'tRs.'
    )


KEYS = pickle.dumps(['7'], 2)
STORAGE = struct.pack('<q4f', 4, 1, 2, 3, 4)


def test_a_file_of_one_vector_is_read(write):
    tensors = read_state_dict(write(tensor(), KEYS, STORAGE))
    np.testing.assert_array_equal(tensors['a'], [1, 2, 3, 4])


@pytest.mark.parametrize(
    ('value', 'keys', 'storages', 'why'),
    [
        (tensor(size=5), KEYS, STORAGE, 'beyond its storage'),
        (tensor(length=2**30), KEYS, STORAGE, 'not as long as it should be'),
        (tensor(length=-1), KEYS, STORAGE, 'a size below 0'),
        (tensor(length=3, size=3), KEYS, STORAGE, 'not as long as it should be'),
        (tensor(), KEYS, STORAGE[:-1], 'not as long as it should be'),
        (tensor(), pickle.dumps(['8'], 2), STORAGE, 'not those of its tensors'),
        (tensor(), pickle.dumps([], 2), STORAGE, 'not those of its tensors'),
        (tensor(view=b'(K\x00K\x00K\x01t'), KEYS, STORAGE, 'a part of another'),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused(write, value, keys, storages, why):
    with pytest.raises(InputError, match=f'can be read: .*{why}'):
        read_state_dict(write(value, keys, storages))


def test_big_endian_numbers_are_refused(write):
    path = write(tensor(), KEYS, STORAGE, little_endian=False)
    with pytest.raises(InputError, match='big-endian'):
        read_state_dict(path)


class RunsCode:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_a_pickle_that_wants_to_run_code_is_refused_wherever_it_stands(write, tmp_path):
    witness = tmp_path / 'it_ran'
    attack = pickle.dumps(RunsCode(witness), 2)
    for path in (write(attack), write(tensor(), attack), write(attack, KEYS, STORAGE)):
        with pytest.raises(InputError, match='its pickle names'):
            read_state_dict(path)
    assert not witness.exists()
    pickle.loads(attack)  # so it would have
    assert witness.exists()


def test_something_else_than_a_state_dict_is_refused(write):
    with pytest.raises(InputError, match='holds a list, not a state dict'):
        read_state_dict(write(pickle.dumps([1], 2), pickle.dumps([], 2)))
