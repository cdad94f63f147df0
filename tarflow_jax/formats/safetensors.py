"""Reads the tensors of a `.safetensors` file.

The format: the length of a header (8 bytes, little-endian), the header (JSON, for each tensor its
type, shape and place), the bytes of the tensors in row-major order.
"""

import json
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np

from tarflow_jax.errors import InputError

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


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file by name, as read-only arrays that are read where they are used.

    Raises:
      InputError: no such file, a damaged one, or one with tensors of another type than NumPy's.
    """
    path = Path(path)
    try:
        data = np.memmap(path, np.uint8, mode='r')
        header_end = 8 + int.from_bytes(data[:8].tobytes(), 'little')
        if header_end > len(data):
            raise ValueError(f'its header would be longer than its {len(data)} bytes')
        header = json.loads(data[8:header_end].tobytes())
        header.pop('__metadata__', None)
        return {name: _tensor(data[header_end:], **entry) for name, entry in header.items()}
    except FileNotFoundError:
        raise InputError(f'{path} does not exist.') from None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise InputError(
            f'{path} is not a safetensors file that can be read: {error}. If it should be one, it '
            'is damaged: fetch it again.'
        ) from error


def _tensor(data, dtype, shape, data_offsets) -> np.ndarray:
    dtype = np.dtype(_DTYPES[dtype])
    begin, end = data_offsets
    length = math.prod(shape) * dtype.itemsize
    if not 0 <= begin <= end <= len(data) or end - begin != length or min(shape, default=0) < 0:
        raise ValueError(
            f'a tensor of shape {shape} takes {length} bytes, not {begin} to {end} of {len(data)}'
        )
    return data[begin:end].view(dtype).reshape(shape)
