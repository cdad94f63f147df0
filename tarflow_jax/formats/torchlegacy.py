"""The files of PyTorch before 1.6, in which the weights of Inception are published.

Such a file is five pickles one after the other (a number that marks the format, its version, facts
about the machine, the object, the names of its storages), then the storages: of each the count of
its elements, 8 bytes, and the elements.
"""

import os
import pickle
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from tarflow_jax.formats.torchpickle import TensorUnpickler

_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_VERSION = 1001


def is_legacy(file: BufferedReader) -> bool:
    """Whether a file begins as those of PyTorch before 1.6 do; it is read from the start after."""
    start = file.read(len(_START))
    file.seek(0)
    return start == _START


def read(file: BufferedReader, path: Path) -> Any:
    """What was saved."""
    if file.read(len(_START)) != _START or _Plain(file).load() != _VERSION:
        raise pickle.UnpicklingError('it does not begin as such a file does')
    machine = _Plain(file).load()
    if not machine['little_endian']:
        raise pickle.UnpicklingError('its numbers are in big-endian order')
    unpickler = _Unpickler(file, path)
    value = unpickler.load()
    unpickler.fill(_Plain(file).load())
    return value


class _Plain(pickle.Unpickler):
    """Of numbers, text, and lists and dictionaries of them."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f'its description asks for {module}.{name}')


class _Unpickler(TensorUnpickler):
    """Makes tensors of storages that are filled afterwards, as their bytes come after all names."""

    def __init__(self, file: BufferedReader, path: Path):
        super().__init__(file, path)
        self._file = file
        self._storages: dict[str, np.ndarray] = {}
        self._bytes_left = os.fstat(file.fileno()).st_size

    def persistent_load(self, storage_id):
        _, dtype, key, _, length, view = storage_id
        if view is not None:
            raise pickle.UnpicklingError('a storage is a part of another')
        if key not in self._storages:
            self._bytes_left -= length * np.dtype(dtype).itemsize
            if length < 0 or self._bytes_left < 0:
                raise pickle.UnpicklingError('its storages would be longer than it is')
            self._storages[key] = np.empty(length, dtype)
        return self._storages[key]

    def fill(self, keys: list[str]) -> None:
        """Reads the storages, which lie in the order of these keys."""
        if sorted(keys) != sorted(self._storages):
            raise pickle.UnpicklingError('its storages are not those of its tensors')
        for key in keys:
            storage = self._storages[key]
            length = int.from_bytes(self._file.read(8), 'little')
            read = self._file.readinto(storage.view(np.uint8).data)
            if length != len(storage) or read != storage.nbytes:
                raise pickle.UnpicklingError('a storage is not as long as it should be')
