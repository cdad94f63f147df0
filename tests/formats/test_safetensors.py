import json
import os
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from tarflow_jax.errors import InputError
from tarflow_jax.formats import safetensors

ENTRY = {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]}


def write(path, header, data=bytes(24)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)
    return path


def test_tensors_are_read(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    halves = np.array([0.5, -2], ml_dtypes.bfloat16)
    header = {
        '__metadata__': {'format': 'pt'},
        'halves': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [24, 28]},
        'matrix': ENTRY,
        'count': {'dtype': 'I64', 'shape': [], 'data_offsets': [28, 36]},
        'empty': {'dtype': 'F32', 'shape': [0, 3], 'data_offsets': [36, 36]},
    }
    data = matrix.tobytes() + halves.tobytes() + np.int64(7).tobytes()
    tensors = safetensors.read(write(tmp_path / 'x.safetensors', header, data))
    assert set(tensors) == {'halves', 'matrix', 'count', 'empty'}
    np.testing.assert_array_equal(tensors['matrix'], matrix)
    assert tensors['halves'].dtype == halves.dtype
    np.testing.assert_array_equal(tensors['halves'], halves)
    np.testing.assert_array_equal(tensors['count'], 7)
    assert tensors['empty'].shape == (0, 3)


@pytest.mark.parametrize(
    'change',
    [
        {'data_offsets': [0, 28]},
        {'data_offsets': [-24, 0]},
        {'data_offsets': [24, 0]},
        {'data_offsets': [0, 20]},
        {'data_offsets': [24, 48]},
        {'shape': [2, 4]},
        {'shape': [-2, -3]},
        {'shape': 'six'},
        {'shape': [2.0, 3.0]},
        {'shape': [2, 3] + [1] * 70},
        {'shape': [2**70, 0], 'data_offsets': [0, 0]},
        {'shape': [int('9' * 4000)] * 2000},
        {'data_offsets': [None, 24]},
        {'dtype': 'F8_E4M3'},
    ],
    ids=lambda change: str(change)[:60],
)
def test_a_tensor_that_does_not_fit_is_refused(tmp_path, change):
    path = write(tmp_path / 'x.safetensors', {'matrix': ENTRY | change})
    with pytest.raises(InputError, match=r'x\.safetensors is not a safetensors file'):
        safetensors.read(path)


@pytest.mark.parametrize(
    'header',
    [b'[]', b'null', b'{"a": 1}', b'{"a": null}', b'\xff\xfe', b'{', b'', b'[' * 200_000],
    ids=lambda header: header[:10],
)
def test_another_header_is_refused(tmp_path, header):
    with pytest.raises(InputError, match='is not a safetensors file'):
        safetensors.read(write(tmp_path / 'x.safetensors', header))


def test_a_truncated_file_is_refused(tmp_path):
    path = write(tmp_path / 'x.safetensors', {'matrix': ENTRY})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match='damaged: fetch it again'):
            safetensors.read(path)


def test_a_header_of_gigabytes_is_refused_unread(tmp_path):
    path = tmp_path / 'x.safetensors'
    path.write_bytes(struct.pack('<Q', 2**31))
    os.truncate(path, 2**32)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match='header too large'):
            safetensors.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'x.safetensors')
    with pytest.raises(InputError, match='it is not a file, but a FIFO'):
        safetensors.read(tmp_path / 'x.safetensors')


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r'nothing\.safetensors does not exist'):
        safetensors.read(tmp_path / 'nothing.safetensors')
