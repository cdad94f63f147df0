"""What is common to the pickles in all of PyTorch's files.

Unpickling can call any function the pickle names, so the unpickler here knows the handful of names
that tensors need and refuses every other.
"""

import collections
import pickle
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from tarflow_jax.errors import InputError

STORAGE_DTYPES = {
    'DoubleStorage': np.float64,
    'FloatStorage': np.float32,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}
STORAGES = {np.dtype(dtype): storage for storage, dtype in STORAGE_DTYPES.items()}


class TensorUnpickler(pickle.Unpickler):
    """Makes arrays of tensors; whoever reads a file says where their storages are.

    Args:
      file: the pickle.
      path: of the file that holds it, for messages.
    """

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(file)
        self._path = path

    def find_class(self, module, name):
        known = {
            ('collections', 'OrderedDict'): collections.OrderedDict,
            ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
            ('torch._utils', '_rebuild_parameter'): lambda tensor, *_: tensor,
        }
        if (module, name) in known:
            return known[module, name]
        if module == 'torch' and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        raise InputError(
            f'{self._path} was not loaded: its pickle asks for {module}.{name}, which is no part '
            'of a tensor and could run code. A state dict of plain tensors never does; do not '
            'trust this file.'
        )


def _rebuild_tensor(storage, offset, size, stride, *_):
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (0 not in size and last >= len(storage)):
        raise pickle.UnpicklingError('a tensor reaches beyond its storage')
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)
