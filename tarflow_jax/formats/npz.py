"""Reads the arrays of an `.npz` file: a zip archive of NumPy's `.npy` files.

`numpy.load` trusts such a file: it allocates the sizes that a header claims, and unpacks kilobytes
to gigabytes. Here sizes are compared with the file's before anything is read.
"""

import io
import math
import os
import zipfile
from typing import NamedTuple, Self

import numpy as np

from tarflow_jax.files import open_regular

_COMPRESSION_TYPES = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # as NumPy writes
_MAX_HEADER_BYTES = 2**16
# Arrays may unpack to a hundredfold of their file and a gigabyte.
_MAX_EXPANSION, _MAX_BYTES = 100, 2**30


class Header(NamedTuple):
    """The shape and type of an array, before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype


class NpzArrays:
    """The arrays of a file by name, each read when it is used. A context manager.

    Attributes:
      headers: the headers of all arrays, by their names.

    Raises:
      Exception: the file is damaged; of nearly any kind, here or where an array is read.
    """

    def __init__(self, path: str | os.PathLike):
        self._file = open_regular(path)
        try:
            self._archive = zipfile.ZipFile(self._file)
            self._byte_budget = _MAX_EXPANSION * os.fstat(self._file.fileno()).st_size + _MAX_BYTES
            self._infos = {
                info.filename.removesuffix('.npy'): info
                for info in self._archive.infolist()
                if info.filename.endswith('.npy')
            }
            self.headers = {name: self._header(name) for name in self._infos}
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _header(self, name: str) -> Header:
        info = self._infos[name]
        if info.compress_type not in _COMPRESSION_TYPES:
            raise zipfile.BadZipFile(f'{name} is packed in another way than NumPy does')
        with self._archive.open(info) as member:
            start = io.BytesIO(member.read(_MAX_HEADER_BYTES))
        is_v1 = np.lib.format.read_magic(start) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if is_v1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(start)
        if min(shape, default=0) < 0:
            raise ValueError(f'{name} has the shape {shape}')
        num_bytes = start.tell() + math.prod(shape) * dtype.itemsize
        if num_bytes != info.file_size and not dtype.hasobject:
            raise ValueError(f'{name} takes {num_bytes:,} bytes, and has {info.file_size:,}')
        return Header(shape, dtype)

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads an array of plain numbers or text; never an object."""
        info, header = self._infos[name], self.headers[name]
        if header.dtype.kind not in 'biufU':
            raise ValueError(f'{name} is of type {header.dtype}')
        self._byte_budget -= info.file_size
        if self._byte_budget < 0:
            raise ValueError(
                f'{name} would unpack to {info.file_size:,} bytes, more than {_MAX_EXPANSION} '
                'times the file'
            )
        with self._archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
