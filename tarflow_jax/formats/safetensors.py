"""Tensors in `.safetensors` files, by the format's own library."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from tarflow_jax.errors import InputError
from tarflow_jax.files import open_atomically, open_regular


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by name.

    Raises:
      InputError: no such file, a damaged one, or one with tensors of a type that NumPy lacks.
    """
    path = Path(path)
    try:
        with open_regular(path), safe_open(path, 'numpy') as file:
            return {name: file.get_tensor(name) for name in file.offset_keys()}
    except FileNotFoundError:
        raise InputError(f'{path} does not exist.') from None
    except Exception as error:  # SafetensorError, AttributeError of an unknown type, ...
        raise InputError(
            f'{path} is not a safetensors file that can be read: {error}. If it should be one, it '
            'is damaged: fetch it again.'
        ) from error


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors by name, atomically; they must be contiguous in memory."""
    with open_atomically(path) as file:
        save_file(dict(tensors), file.name)
