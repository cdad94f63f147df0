"""Reads the tensors of a PyTorch file without PyTorch, and without running anything in it.

A `.pth` file is a zip archive: a pickle that describes the tensors, and their bytes. Unpickling can
call any function the pickle names, so the unpickler here knows the handful of names that tensors
need and refuses every other.
"""

import collections
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from tarflow_jax.errors import InputError

_STORAGE_DTYPES = {
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


def read_state_dict(path) -> dict[str, np.ndarray]:
    """The named tensors that `torch.save(model.state_dict(), path)` wrote.

    Raises:
      InputError: no such file; not a file of `torch.save` (1.6 or newer); a damaged one; one that
        holds something other than a flat dictionary of tensors; one that asks to run code.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            value = _Unpickler(archive, path).load()
    except FileNotFoundError:
        raise InputError(f'{path} does not exist.') from None
    except InputError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(
            f'{path} is not a checkpoint that can be read: {error}. Expected is a state dict as '
            'torch.save (PyTorch 1.6 or newer) writes it; if it should be one, it is damaged: '
            'fetch it again.'
        ) from error
    is_state_dict = isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, np.ndarray) for name, tensor in value.items()
    )
    if not is_state_dict:
        raise InputError(
            f'{path} holds a {type(value).__name__}, not a state dict (tensors by name). Save one '
            'with torch.save(model.state_dict(), path).'
        )
    return value


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, path: Path):
        pickles = [name for name in archive.namelist() if name.endswith('/data.pkl')]
        if len(pickles) != 1:
            raise zipfile.BadZipFile('the archive holds no data.pkl')
        self._archive = archive
        self._path = path
        self._root = pickles[0].removesuffix('data.pkl')
        super().__init__(archive.open(pickles[0]))

    def find_class(self, module, name):
        known = {
            ('collections', 'OrderedDict'): collections.OrderedDict,
            ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
            ('torch._utils', '_rebuild_parameter'): lambda tensor, *_: tensor,
        }
        if (module, name) in known:
            return known[module, name]
        if module == 'torch' and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        raise InputError(
            f'{self._path} was not loaded: its pickle asks for {module}.{name}, which is no part '
            'of a tensor and could run code. A state dict of plain tensors never does; do not '
            'trust this file.'
        )

    def persistent_load(self, storage_id):
        _, dtype, key, _, length = storage_id
        data = self._archive.read(f'{self._root}data/{key}')
        return np.frombuffer(data, dtype, count=length)


def _rebuild_tensor(storage, offset, size, stride, *_):
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (0 not in size and last >= len(storage)):
        raise pickle.UnpicklingError('a tensor reaches beyond its storage')
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)
