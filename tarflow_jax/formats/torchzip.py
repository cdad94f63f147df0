"""The files of PyTorch from 1.6 on: a zip archive of a pickle, and of the bytes of the tensors."""

import io
import mmap
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tarflow_jax.formats.torchpickle import STORAGES, TensorUnpickler

_ALIGNMENT = 64  # bytes, as PyTorch aligns storages, so that they can be used where they are mapped


def read(file: BinaryIO, path: Path) -> Any:
    """What was saved; the bytes of tensors are checked, and then stay in the file until used."""
    with zipfile.ZipFile(file) as archive:
        return _Unpickler(_Parts(archive, file), path).load()


class _Parts:
    """The parts of an archive, checked, and mapped into memory where they are not compressed."""

    def __init__(self, archive: zipfile.ZipFile, file: BinaryIO):
        pickles = [name for name in archive.namelist() if name.endswith('/data.pkl')]
        if len(pickles) != 1:
            raise zipfile.BadZipFile('the archive holds no data.pkl')
        self._archive = archive
        self._root = pickles[0].removesuffix('data.pkl')
        self._mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if f'{self._root}byteorder' in archive.namelist() and self['byteorder'] != b'little':
            raise zipfile.BadZipFile('its numbers are in big-endian order')

    def __getitem__(self, name: str) -> bytes | memoryview:
        info = self._archive.getinfo(self._root + name)
        if info.compress_type != zipfile.ZIP_STORED:  # by others; PyTorch never compresses
            return self._archive.read(info)
        header = self._mapped[info.header_offset :][:30]
        start = info.header_offset + 30 + sum(struct.unpack('<26xHH', header))
        part = self._mapped[start : start + info.file_size]
        if len(part) != info.file_size or zlib.crc32(part) != info.CRC:
            raise zipfile.BadZipFile(f'{info.filename} is not what was written')
        return part


class _Unpickler(TensorUnpickler):
    def __init__(self, parts: _Parts, path: Path):
        super().__init__(io.BytesIO(parts['data.pkl']), path)
        self._parts = parts
        self._storages = {}

    def persistent_load(self, storage_id):
        _, dtype, key, _, length = storage_id
        if key not in self._storages:
            self._storages[key] = self._parts[f'data/{key}']
        data = self._storages[key]
        return np.frombuffer(data, dtype, count=length) if length else np.empty(0, dtype)


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
    # An extra field of nothing: two letters, its length, and as many bytes as align what follows.
    end = file.tell() + 30 + len(info.filename) + 4
    padding = bytes(-end % _ALIGNMENT)
    info.extra = struct.pack('<2sH', b'FB', len(padding)) + padding
    with archive.open(info, 'w') as part:
        part.write(data)


# Opcodes of pickle protocol 2.
_START, _STOP, _MARK, _TUPLE = b'\x80\x02', b'.', b'(', b't'
_CALL, _SET_ITEMS, _STORAGE_OF = b'R', b'u', b'Q'


def _pickle(tensors: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """The description of tensors. The pickler would want the functions that it names to exist."""
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
