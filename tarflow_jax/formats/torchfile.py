"""Reads and writes the tensors of a PyTorch file without PyTorch, and without running anything."""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tarflow_jax.errors import InputError
from tarflow_jax.files import open_regular, write_atomically
from tarflow_jax.formats import torchlegacy, torchzip
from tarflow_jax.formats.torchpickle import STORAGES, Tensor

# Tensors may repeat elements and share storages, but not be a thousandfold of their file.
_MAX_EXPANSION, _MAX_BYTES = 8, 2**30


def read_state_dict(path) -> dict[str, np.ndarray]:
    """Returns the named tensors that `torch.save(model.state_dict(), path)` wrote.

    The arrays are read-only views of the memory-mapped file, so that a large file takes little
    memory. Their bytes are checked here, once: if the file is overwritten in place afterwards, the
    arrays are wrong (replacing the file by another is harmless).

    Raises:
      InputError: no such file; not a file of `torch.save`; a damaged one; one that holds something
        other than a flat dictionary of tensors; one that asks to run code.
    """
    path = Path(path)
    if path.suffix == '.safetensors':
        raise InputError(f'{path} is one file of a model: give the folder that holds it.')
    try:
        with open_regular(path) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        file_format = torchlegacy if torchlegacy.is_legacy(mapped) else torchzip
        value, storages = file_format.read(mapped, path)
        _check_state_dict(path, value)
        _check_size(value, len(mapped))
        return {name: tensor.array(storages[tensor.storage.key]) for name, tensor in value.items()}
    except FileNotFoundError:
        raise InputError(f'{path} does not exist.') from None
    except InputError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        raise InputError(
            f'{path} is not a checkpoint that can be read: {error}. Expected a state dict as '
            'torch.save writes it; if it should be one, it is damaged: fetch it again.'
        ) from error


def _check_state_dict(path: Path, value: Any) -> None:
    is_state_dict = isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )
    if not is_state_dict:
        raise InputError(
            f'{path} holds a {type(value).__name__}, not a state dict (tensors by name). Save one '
            'with torch.save(model.state_dict(), path).'
        )


def _check_size(tensors: dict[str, Tensor], file_size: int) -> None:
    num_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    if num_bytes > _MAX_EXPANSION * file_size + _MAX_BYTES:
        raise ValueError(f'its tensors, {num_bytes} bytes, are far larger than it is')


def write_state_dict(path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name to a file that `torch.load(path, weights_only=True)` reads.

    The file appears complete or not at all, and depends on the tensors only, to the byte.

    Raises:
      InputError: an array of a type that is not written.
      OSError: the disk is full, say.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in STORAGES:
            known = ', '.join(map(str, STORAGES))
            raise InputError(f'{name} has the type {tensor.dtype}; only {known} can be written.')
    write_atomically(path, lambda file: torchzip.write(file, tensors))
