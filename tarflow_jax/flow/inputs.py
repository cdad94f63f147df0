"""Checks the types, shapes and values of the arrays that callers give to a flow."""

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.errors import InputError
from tarflow_jax.values import INT32_MAX, Integer, raise_invalid

SEED = Integer(0, INT32_MAX)


def as_batch(name: str, array, row_shape: tuple[int, ...]) -> jax.Array:
    """A batch of images, noise or tokens as float32 [B, *row_shape].

    Args:
      name: the array's name in messages.
      array: floating-point numbers in an array or in nested lists.
      row_shape: the shape of one row.

    Raises:
      InputError: the array has another shape, or integers, which cannot be pixels in [-1, 1].
    """
    array = as_array(name, array)
    if array.ndim == 0 or array.shape[1:] != row_shape or not len(array):
        expected = ', '.join(map(str, ('batch', *row_shape)))
        raise InputError(f'the model takes {name} of shape [{expected}]; got {list(array.shape)}.')
    if not jnp.issubdtype(array.dtype, jnp.floating):
        advice = ' For levels 0..255, take images / 127.5 - 1.' if name == 'images' else ''
        raise InputError(f'{name} must be floating-point numbers; got {array.dtype}.{advice}')
    return jnp.asarray(array, jnp.float32)


def as_labels(labels, batch: int, num_classes: int) -> jax.Array:
    """Labels as int32 [batch], all -1 for None; values are checked unless `jit` traces them."""
    if labels is None:
        return jnp.full((batch,), -1, jnp.int32)
    labels = as_array('labels', labels)
    if labels.shape != (batch,):
        raise InputError(f'labels must have the shape ({batch},), one per row; got {labels.shape}.')
    if not jnp.issubdtype(labels.dtype, jnp.integer) and batch:
        raise_invalid('labels', 'must be whole numbers', labels)
    if num_classes and not isinstance(labels, jax.core.Tracer):
        values = np.asarray(labels)
        wrong = values[(values < -1) | (values >= num_classes)]
        if wrong.size:
            raise InputError(
                f'labels must lie in 0..{num_classes - 1}, or be -1 for no label; '
                f'got {sorted(set(wrong.tolist()))[:5]}.'
            )
    return jnp.asarray(labels, jnp.int32)


def as_key(key) -> jax.Array:
    """Converts a seed, a raw key or a typed key to a typed key of `jax.random.key`.

    Raises:
      InputError: it is neither a key nor a whole number from 0 on.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim:
            raise_invalid('key', 'must be a single key', key)
        return key
    if isinstance(key, jax.Array | np.ndarray) and key.shape == (2,) and key.dtype == np.uint32:
        return jax.random.wrap_key_data(jnp.asarray(key))
    return jax.random.key(SEED.check('key, or seed,', key))


def as_array(name: str, value) -> jax.Array | np.ndarray:
    """Arrays, traced ones included, as they are; lists and numbers as NumPy arrays."""
    if isinstance(value, jax.Array | np.ndarray):
        return value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # lists of unequal lengths, tensors of PyTorch
        array = np.array(None)
    if array.dtype.kind not in 'biufcV':  # V includes bfloat16
        raise_invalid(name, 'must be an array of numbers', value)
    return array
