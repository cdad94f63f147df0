"""The files of PyTorch from 1.6 on: a zip archive of a pickle, and of the bytes of the tensors."""

import io
import mmap
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np

from tarflow_jax.formats import torchpickle
from tarflow_jax.formats.torchpickle import STORAGES

_ALIGNMENT = 64  # bytes, as PyTorch aligns storages, so that they can be used where they are mapped


def read(mapped: mmap.mmap, path: Path) -> tuple[Any, dict[str, memoryview]]:
    """Returns the saved value, and the bytes of its storages by key, checked."""
    if not zipfile.is_zipfile(cast(IO[bytes], mapped)):
        raise zipfile.BadZipFile('it is not a zip archive')
    with zipfile.ZipFile(cast(IO[bytes], mapped)) as archive:
        parts = _Parts(archive, memoryview(mapped))
    value, storages = torchpickle.load(io.BytesIO(parts['data.pkl']), path)
    return value, {key: parts[f'data/{key}'] for key in storages}


class _Parts:
    """The parts of an archive, checked, where they lie in the file."""

    def __init__(self, archive: zipfile.ZipFile, mapped: memoryview):
        self._mapped = mapped
        self._left = len(mapped)  # bytes that more parts may have, as no two overlap
        self._infos = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self._infos if name.endswith('/data.pkl')]
        if len(pickles) != 1:
            raise zipfile.BadZipFile('the archive holds no data.pkl')
        self._root = pickles[0].removesuffix('data.pkl')
        if f'{self._root}byteorder' in self._infos and self['byteorder'] != b'little':
            raise zipfile.BadZipFile('its numbers are in big-endian order')

    def __getitem__(self, name: str) -> memoryview:
        name = self._root + name
        if name not in self._infos:
            raise zipfile.BadZipFile(f'the archive holds no {name}')
        info = self._infos[name]
        if info.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(
                f'{name} is compressed, which PyTorch never does: pack the archive with zip -0'
            )
        start = max(info.header_offset, 0)
        start += 30 + sum(struct.unpack('<26xHH', self._mapped[start : start + 30]))
        part = self._mapped[start : start + info.file_size]
        self._left -= info.file_size
        if self._left < 0:
            raise zipfile.BadZipFile('its parts are longer than it is')
        if len(part) != info.file_size or zlib.crc32(part) != info.CRC:
            raise zipfile.BadZipFile(f'{name} is not what was written')
        return part


def write(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name as `torch.load(file, weights_only=True)` reads them.

    The bytes depend on the tensors only.
    """
    with zipfile.ZipFile(file, 'w') as archive:
        _write_part(archive, file, 'data.pkl', b''.join(_pickle(tensors)))
        _write_part(archive, file, 'byteorder', b'little')
        for key, tensor in enumerate(tensors.values()):
            array = np.asarray(tensor).astype(tensor.dtype.newbyteorder('<'), 'C', copy=False)
            _write_part(archive, file, f'data/{key}', array.reshape(-1).view(np.uint8).data)
        _write_part(archive, file, 'version', b'3\n')


def _write_part(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes | memoryview):
    info = zipfile.ZipInfo(f'archive/{name}')  # of 1980, whenever it is written
    info.file_size = len(data)
    # An extra field that only pads: a two-byte id, its length, and zeros up to the alignment.
    end = file.tell() + 30 + len(info.filename) + 4
    padding = bytes(-end % _ALIGNMENT)
    info.extra = struct.pack('<2sH', b'FB', len(padding)) + padding
    with archive.open(info, 'w') as part:
        part.write(data)


# Opcodes of pickle protocol 2.
_START, _STOP, _MARK, _TUPLE = b'\x80\x02', b'.', b'(', b't'
_CALL, _SET_ITEMS, _STORAGE_OF = b'R', b'u', b'Q'


def _pickle(tensors: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """Yields the description of tensors; the pickler would require the functions that it names."""
    empty = _global('collections', 'OrderedDict') + _plain(()) + _CALL
    yield _START + empty + _MARK
    for key, (name, tensor) in enumerate(tensors.items()):
        dtype = _global('torch', STORAGES[tensor.dtype])
        names = _plain('storage'), dtype, _plain(str(key)), _plain('cpu'), _plain(tensor.size)
        yield _plain(name) + _global('torch._utils', '_rebuild_tensor_v2') + _MARK
        yield _MARK + b''.join(names) + _TUPLE + _STORAGE_OF
        yield _plain(0) + _plain(tensor.shape) + _plain(_strides(tensor.shape))
        yield _plain(False) + empty + _TUPLE + _CALL  # no gradient, no hooks
    yield _SET_ITEMS + _STOP


def _plain(value) -> bytes:
    return pickle.dumps(value, protocol=2)[len(_START) : -len(_STOP)]


def _global(module: str, name: str) -> bytes:
    return f'c{module}\n{name}\n'.encode()


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Steps between the numbers of a tensor along each axis, last axis fastest."""
    return tuple(int(np.prod(shape[axis + 1 :], dtype=int)) for axis in range(len(shape)))
