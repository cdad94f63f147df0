"""Fingerprints of arrays, which detect that a checkpoint has been corrupted."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.files import json_text

_CHUNK = 2**18  # words; what NumPy works on stays in the cache


def digest(tree) -> str:
    """The SHA-256 of the fingerprints of a tree's arrays."""
    return hashlib.sha256(json_text(fingerprints(tree)).encode()).hexdigest()


def fingerprints(tree) -> dict[str, int]:
    """A number for each array of a tree by its path; equal on any mesh, changed by any bit flip."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    arrays = {jax.tree_util.keystr(path): array for path, array in flat}
    if all(_is_on_host(array) for array in arrays.values()):
        jax.block_until_ready(arrays)
        return {path: _weighted_sum(_words(array)) for path, array in arrays.items()}
    return {path: int(value) for path, value in jax.device_get(_compiled(arrays)).items()}


@jax.jit
def _compiled(tree):
    return jax.tree.map(_fingerprint, tree)


def _fingerprint(array):
    """The sum of the array's 32-bit words, each times an odd number of its own, modulo 2^32."""
    words = jax.lax.bitcast_convert_type(array.astype(_word_dtype(array)), jnp.uint32).ravel()
    odd = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
    return (words * odd).sum(dtype=jnp.uint32)


def _word_dtype(array):
    return jnp.float32 if jnp.issubdtype(array.dtype, jnp.floating) else jnp.uint32


def _is_on_host(array) -> bool:
    """Whether NumPy can read the words: compiling takes longer than reading a small model."""
    return (
        isinstance(array, jax.Array)
        and array.is_fully_replicated
        and all(device.platform == 'cpu' for device in array.sharding.device_set)
        and array.dtype in (np.float32, np.int32, np.uint32)
    )


def _words(array: jax.Array) -> np.ndarray:
    """A view of the array's words; that of `np.asarray` would be cached and prevent donation."""
    data: Any = array.addressable_data(0)
    return np.from_dlpack(data).view(np.uint32).reshape(-1)


def _weighted_sum(words: np.ndarray) -> int:
    """What `_fingerprint` computes."""
    odd = 2 * np.arange(min(_CHUNK, words.size), dtype=np.uint32) + 1
    total = 0
    for start in range(0, words.size, _CHUNK):
        chunk = words[start : start + _CHUNK]
        total += int(chunk @ odd[: chunk.size]) + 2 * start * int(chunk.sum(dtype=np.uint32))
    return total % 2**32
