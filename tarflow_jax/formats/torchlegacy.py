"""The files of PyTorch before 1.6, in which the weights of Inception are published.

Such a file is five pickles one after the other (a number that marks the format, its version, facts
about the machine, the object, the names of its storages), then the storages: for each, the number
of its elements, in 8 bytes, and the elements.
"""

import mmap
import pickle
from pathlib import Path
from typing import IO, Any, cast

from tarflow_jax.formats import torchpickle
from tarflow_jax.formats.torchpickle import Storage

_MAGIC = 0x1950A86A20F9469CFC6C
_START = pickle.dumps(_MAGIC, protocol=2)
_VERSION = 1001


def is_legacy(mapped: mmap.mmap) -> bool:
    """Returns whether a file begins as those of PyTorch before 1.6 do."""
    return mapped[: len(_START)] == _START


def read(mapped: mmap.mmap, path: Path) -> tuple[Any, dict[str, memoryview]]:
    """Returns the saved value, and the bytes of its storages by key, where they lie in the file."""
    file = cast(IO[bytes], mapped)
    (magic, _), (version, _), (machine, _) = (torchpickle.load(file, path) for _ in range(3))
    if magic != _MAGIC or version != _VERSION:
        raise pickle.UnpicklingError('it does not begin as such a file does')
    if not isinstance(machine, dict) or machine.get('little_endian') is not True:
        raise pickle.UnpicklingError('its numbers are in big-endian order')
    value, storages = torchpickle.load(file, path)
    keys, _ = torchpickle.load(file, path)
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not is_list or sorted(keys) != sorted(storages):
        raise pickle.UnpicklingError('its storages are not those of its tensors')
    return value, _parts(mapped, [storages[key] for key in keys])


def _parts(mapped: mmap.mmap, storages: list[Storage]) -> dict[str, memoryview]:
    """Returns the bytes of storages that lie end to end from the position of the file on."""
    data, place = memoryview(mapped), mapped.tell()
    parts = {}
    for storage in storages:
        start, end = place + 8, place + 8 + storage.num_bytes
        if end > len(data) or int.from_bytes(data[place:start], 'little') != storage.length:
            raise pickle.UnpicklingError('a storage is not as long as it should be')
        parts[storage.key] = data[start:end]
        place = end
    return parts
