"""Reads the tensors of a `.safetensors` file.

The format: the length of a header (8 bytes, little-endian), the header (JSON, for each tensor its
type, shape and place), the bytes of the tensors in row-major order.
"""

import json
import math
import mmap
import os
from pathlib import Path

import ml_dtypes
import numpy as np

from tarflow_jax.errors import InputError
from tarflow_jax.files import open_regular

_DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U8': np.uint8,
    'BOOL': np.bool_,
}


_MOST_HEADER_BYTES = 2**24  # of a hundred thousand tensors
_MOST_AXES = 32


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file by name, as read-only arrays that are read where they are used.

    Raises:
      InputError: no such file, a damaged one, or one with tensors of another type than NumPy's.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        header_end = 8 + int.from_bytes(data[:8], 'little')
        if header_end > min(len(data), _MOST_HEADER_BYTES):
            raise ValueError(
                f'its header would end at byte {header_end:,} of {len(data):,}; at most '
                f'{_MOST_HEADER_BYTES:,} are read'
            )
        header = json.loads(bytes(data[8:header_end]))
        header.pop('__metadata__', None)
        return {name: _tensor(data[header_end:], **entry) for name, entry in header.items()}
    except FileNotFoundError:
        raise InputError(f'{path} does not exist.') from None
    except Exception as error:  # JSON of a damaged header is nearly anything
        raise InputError(
            f'{path} is not a safetensors file that can be read: {error}. If it should be one, it '
            'is damaged: fetch it again.'
        ) from error


def _tensor(data: memoryview, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    begin, end = data_offsets
    if len(shape) > _MOST_AXES or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise ValueError('a tensor has another shape than non-negative numbers of axes')
    numbers = np.dtype(_DTYPES[dtype])
    length = math.prod(shape) * numbers.itemsize
    if not 0 <= begin <= end <= len(data) or end - begin != length:
        raise ValueError(f'a tensor of shape {shape} does not lie at {begin} to {end}')
    return np.frombuffer(data[begin:end], numbers).reshape(shape)
