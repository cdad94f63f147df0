"""Fingerprints of arrays, which notice what a checkpoint lost on its way."""

import hashlib

import jax
import jax.numpy as jnp

from tarflow_jax.files import json_text


def digest(tree) -> str:
    """The SHA-256 of the fingerprints of a tree's arrays."""
    return hashlib.sha256(json_text(fingerprints(tree)).encode()).hexdigest()


def fingerprints(tree) -> dict[str, int]:
    """A number for each array of a tree by its path; equal on any mesh, changed by any bit flip."""
    prints = jax.device_get(_fingerprints(tree))
    flat, _ = jax.tree_util.tree_flatten_with_path(prints)
    return {jax.tree_util.keystr(path): int(value) for path, value in flat}


@jax.jit
def _fingerprints(tree):
    return jax.tree.map(_fingerprint, tree)


def _fingerprint(array):
    """The sum of the array's 32-bit words, each times an odd number of its own, modulo 2^32."""
    words = jax.lax.bitcast_convert_type(array.astype(_word_dtype(array)), jnp.uint32).ravel()
    odd = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
    return (words * odd).sum(dtype=jnp.uint32)


def _word_dtype(array):
    return jnp.float32 if jnp.issubdtype(array.dtype, jnp.floating) else jnp.uint32
