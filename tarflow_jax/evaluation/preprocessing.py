"""From images of any size to the 299 x 299 pixels that the Inception network reads.

How an image is resized moves FID as much as a better model does (Parmar et al. 2022,
arXiv:2104.11222), so each of the packages that FID is computed with is matched by its name. A
resize is a sum over rows and one over columns: two products with a matrix [299, size].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.errors import InputError
from tarflow_jax.evaluation.inception import IMAGE_SIZE, PRECISION
from tarflow_jax.values import Choice


class Preprocessing(NamedTuple):
    """How one package prepares images.

    Attributes:
      resize: a function from the number of pixels along an axis to the resize matrix of that axis,
        float64 [299, pixels].
      rescale: a function from resized levels, about [0, 255], to the network's range.
    """

    resize: Callable[[int], np.ndarray]
    rescale: Callable[[jax.Array], jax.Array]


def preprocess(images, name: str = 'torch-fidelity') -> jax.Array:
    """Images as the network reads them; can be jitted, with `name` static.

    Args:
      images: uint8 [B, H, W, 3], or [B, H, W, 1], of which the channel is repeated.
      name: one of `PREPROCESSINGS`. 'torch-fidelity' is also that of torchmetrics and TarFlow.

    Returns:
      float32 [B, 299, 299, 3] in [-1, 1].

    Raises:
      InputError: no such preprocessing, or images of another type or shape.
    """
    levels = images.dtype == np.uint8 and images.ndim == 4 and 0 not in images.shape
    if not levels or images.shape[-1] not in (1, 3):
        raise InputError(
            f'images of type {images.dtype} and shape {tuple(images.shape)} cannot be scored. They '
            'are uint8, levels from 0 to 255, of shape [B, H, W, 3] or [B, H, W, 1].'
        )
    resize, rescale = PREPROCESSINGS[PREPROCESSING.check('preprocessing', name)]
    height, width, channels = images.shape[1:]
    x_BHWC = jnp.asarray(images).astype(jnp.float32)
    rows_RH, columns_SW = (jnp.asarray(resize(n), jnp.float32) for n in (height, width))
    x_BRWC = jnp.einsum('RH,BHWC->BRWC', rows_RH, x_BHWC, precision=PRECISION)
    x_BRSC = jnp.einsum('SW,BRWC->BRSC', columns_SW, x_BRWC, precision=PRECISION)
    return jnp.repeat(rescale(x_BRSC), 3 // channels, axis=-1)


def legacy_bilinear(size: int) -> np.ndarray:
    """The resize of TensorFlow 1: pixel i of the result lies at i * size / 299, off the centre.

    Positions are rounded to float32 as in TensorFlow; the difference, 1e-5, shows in the features.
    """
    return _bilinear(np.arange(IMAGE_SIZE, dtype=np.float32) * np.float32(size / IMAGE_SIZE), size)


def half_pixel_bilinear(size: int) -> np.ndarray:
    """PyTorch's: between the centres of pixels, at i + 1/2; positions are rounded to float32."""
    return _bilinear(_centres(size, np.float32), size)


def antialiased_bicubic(size: int) -> np.ndarray:
    """The resize of Pillow: Keys' cubic kernel with a = -1/2, widened if the image is reduced."""
    stretch = max(size / IMAGE_SIZE, 1)
    distances = (np.arange(size) - _centres(size)[:, None]) / stretch
    weights = _cubic(np.abs(distances))
    return weights / weights.sum(axis=1, keepdims=True)


def _centres(size: int, dtype: type[np.floating] = np.float64) -> np.ndarray:
    """Where the centres of the 299 pixels lie, counted in pixels of the image."""
    scale, half = dtype(size / IMAGE_SIZE), dtype(0.5)
    return (np.arange(IMAGE_SIZE, dtype=dtype) + half) * scale - half


def _bilinear(positions: np.ndarray, size: int) -> np.ndarray:
    """Weights of the two pixels around each position; positions are clipped to the image."""
    positions = np.clip(positions.astype(np.float64), 0, size - 1)
    return np.maximum(0, 1 - np.abs(np.arange(size) - positions[:, None]))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' interpolation kernel (1981, a = -1/2) at distances x >= 0."""
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


PREPROCESSINGS = {
    'torch-fidelity': Preprocessing(legacy_bilinear, lambda x: (x - 128) / 128),
    'pytorch-fid': Preprocessing(half_pixel_bilinear, lambda x: 2 * (x / 255) - 1),
    'clean-fid': Preprocessing(antialiased_bicubic, lambda x: (jnp.clip(x, 0, 255) - 128) / 128),
}
PREPROCESSING = Choice(tuple(PREPROCESSINGS))
