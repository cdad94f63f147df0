"""Converts images, latents and labels of many forms to the arrays that a model takes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tarflow_jax.errors import InputError
from tarflow_jax.flow.inputs import as_batch, as_labels
from tarflow_jax.sampling.labels import class_number
from tarflow_jax.values import raise_invalid

FAR = 16.0  # beyond any noise and guidance: such pixels are levels that were not scaled


def image_batch(images: Any, image_shape: tuple[int, int, int]) -> jax.Array:
    """Images as float32 [B, H, W, C], pixels in [-1, 1].

    Args:
      images: an array or a Pillow image, or a list of them: floats in [-1, 1], which stay as
        they are, or uint8, whose levels 0 to 255 are spread over [-1, 1]. A single image becomes a
        batch of one, and grey images may lack the axis of the channel. Pillow images become
        grey or RGB, and those of another size are scaled and cropped like a prepared folder.
      image_shape: (H, W, C) of the result.

    Raises:
      InputError: images of another shape or of other numbers.
    """
    array = _add_missing_axes(_as_single_array(images, image_shape, 'images'), image_shape)
    if array.dtype == np.uint8:
        return as_batch('images', array.astype(np.float32) / 127.5 - 1, image_shape)
    array = as_batch('images', array, image_shape)
    if not isinstance(array, jax.core.Tracer) and not (largest := float(abs(array).max())) <= FAR:
        logging.warning('images reach %.3g; their pixels should lie in [-1, 1].', largest)
    return array


def latent_batch(latents: Any, image_shape: tuple[int, int, int]) -> jax.Array:
    """Latents as float32 [B, H, W, C]; a single one becomes a batch, as with images."""
    array = _as_single_array(latents, image_shape, 'latents')
    return as_batch('latents', _add_missing_axes(array, image_shape), image_shape)


def level_batch(images: Any, image_shape: tuple[int, int, int], num_levels: int) -> np.ndarray:
    """Images of whole levels as uint8 [B, H, W, C]; see `image_batch` for what they can be.

    Raises:
      InputError: they are not uint8, of another shape, or have a level of `num_levels` or above.
    """
    array = _add_missing_axes(_as_single_array(images, image_shape, 'images'), image_shape)
    if array.dtype != np.uint8:
        raise InputError(
            'images must be uint8 levels, because bits per dimension are defined for levels; '
            f'got {array.dtype}.'
        )
    as_batch('images', array.astype(np.float32), image_shape)  # checks the shape
    levels = np.asarray(array)
    if levels.size and levels.max() >= num_levels:
        raise InputError(
            f'images have levels up to {levels.max()}; with num_levels={num_levels} they must lie '
            f'in 0..{num_levels - 1}.'
        )
    return levels


def label_batch(
    labels: Any,
    batch: int,
    num_classes: int,
    class_names: Callable[[], Sequence[str]] = tuple,
) -> jax.Array:
    """Labels as int32 [batch].

    Args:
      labels: a number or a name of a class, for all images, or a list or an array with one for
        each; -1, or None for all, is no label.
      batch: the number of images.
      num_classes: labels are below it; 0 for a model without classes.
      class_names: gives the names in the order of the numbers; called if there is one among labels.

    Raises:
      InputError: there is no such class, or there are more labels or fewer than images.
    """
    if isinstance(labels, jax.Array | np.ndarray) and not labels.ndim:
        full = np.full if isinstance(labels, np.ndarray) else jnp.full  # jnp has no names
        labels = full(batch, labels)
    if isinstance(labels, str | int | np.integer) and not isinstance(labels, bool):
        labels = [labels] * batch
    if isinstance(labels, list | tuple | np.ndarray) and any(isinstance(v, str) for v in labels):
        names = list(class_names())
        labels = [
            class_number(label, names) if isinstance(label, str) else label for label in labels
        ]
    return as_labels(labels, batch, num_classes)


def _as_single_array(images, image_shape, name) -> Any:
    """One array of all images, of whatever type and number of axes."""
    if isinstance(images, jax.Array | np.ndarray):
        return images
    if _is_picture(images):
        return _picture_to_array(images, image_shape)[None]
    if isinstance(images, list | tuple):
        images = [
            _picture_to_array(image, image_shape) if _is_picture(image) else image
            for image in images
        ]
        _check_items(images, name)
    try:
        array = np.asarray(images)
    except (TypeError, ValueError, RuntimeError) as error:
        words = str(error).partition('\n')[0]
        raise InputError(f'{name} cannot become a NumPy array: {words}') from None
    if array.dtype.kind not in 'biufcV':
        raise_invalid(name, 'must be images: arrays, Pillow images, or lists of them', images)
    return array


def _check_items(images: list, name: str) -> None:
    """Raises InputError if arrays in a list have other shapes, or levels are among floats."""
    arrays = [image for image in images if isinstance(image, jax.Array | np.ndarray)]
    if len(shapes := {array.shape for array in arrays}) > 1:
        raise InputError(f'{name} must have one shape; got {sorted(shapes)[:5]}.')
    dtypes = {array.dtype for array in arrays}
    # NumPy would take levels for numbers in [-1, 1].
    if np.dtype(np.uint8) in dtypes and len(dtypes) > 1:
        names = ' and '.join(sorted(map(str, dtypes)))
        raise InputError(f'{name} must all be of one type; got {names}.')


def _add_missing_axes(array, image_shape: tuple[int, int, int]):
    """Adds the batch axis and the channel axis where the shape shows that they are missing."""
    if image_shape[2] == 1 and array.shape[-2:] == image_shape[:2] and array.ndim in (2, 3):
        array = array[..., None]
    return array[None] if array.shape == image_shape else array


def _is_picture(image) -> bool:
    """Whether it is a Pillow image; to tell, Pillow need not be imported."""
    return any(base.__module__ == 'PIL.Image' for base in type(image).__mro__)


def _picture_to_array(picture, image_shape: tuple[int, int, int]) -> np.ndarray:
    from tarflow_jax.data.images import resize_and_crop, upright_rgb

    height, width, channels = image_shape
    if 0 in picture.size:
        raise InputError(f'a Pillow image of {picture.size[0]}x{picture.size[1]} is empty.')
    if channels not in (1, 3):
        raise InputError(
            f'Pillow images have 1 or 3 channels; the images of the model have {channels}.'
        )
    try:
        picture = upright_rgb(picture)
    except ValueError as error:
        raise InputError(f'a Pillow image of mode {picture.mode} has {error}.') from None
    if picture.size != (width, height):
        if height != width:
            raise InputError(
                f'a Pillow image of {picture.size[0]}x{picture.size[1]} pixels is scaled and '
                f'cropped only for models of square images; this model needs {width}x{height}.'
            )
        picture = resize_and_crop(picture, height)
    array = np.asarray(picture)
    if channels == 3:
        return array
    from PIL import Image

    return np.asarray(Image.fromarray(array).convert('L'))[..., None]
