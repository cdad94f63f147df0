"""Image features that need no weights: the amount of detail by scale and place.

They are not a perceptual measure, and no published values are comparable with theirs. They show
whether samples have the colours, contrasts and textures of the data at each scale and place. Every
level of a Haar transform halves the image. The magnitudes of its three kinds of detail (horizontal,
vertical, diagonal) are averaged over a grid of at most 4x4 cells, and the last low-pass image is
averaged to a thumbnail.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

GRID = 4  # places along a side


def features(images: jax.Array) -> jax.Array:
    """Features [B, D], float32, of uint8 images [B, H, W, C].

    D is about 3 C 4^2 for each halving, and C 4^2 for the thumbnail: 64 for the shape (8, 8, 1),
    624 for (64, 64, 3), 912 for (256, 256, 3).
    """
    x = images.astype(jnp.float32) / 255
    parts = []
    while min(x.shape[1:3]) > GRID:
        x, details = _halve(x)
        parts += [_average(jnp.abs(detail)) for detail in details]
    parts.append(_average(x))
    return jnp.concatenate([values.reshape(len(x), -1) for values in parts], axis=1)


def _halve(x):
    """The mean of every 2x2 pixels, and three differences within them; an odd last row is left."""
    height, width = (side // 2 * 2 for side in x.shape[1:3])
    x = x[:, :height, :width]
    a, b = x[:, ::2, ::2], x[:, ::2, 1::2]
    c, d = x[:, 1::2, ::2], x[:, 1::2, 1::2]
    return (a + b + c + d) / 4, [(a - b + c - d) / 4, (a + b - c - d) / 4, (a - b - c + d) / 4]


def _average(x):
    """Means over a grid of at most GRID x GRID cells of about equal size."""
    rows, columns = (_cells(side) for side in x.shape[1:3])
    return jnp.einsum('RH,SW,BHWC->BRSC', rows, columns, x, precision=jax.lax.Precision.HIGHEST)


def _cells(side: int) -> np.ndarray:
    """The matrix [min(side, GRID), side] that averages consecutive cells."""
    edges = np.linspace(0, side, min(side, GRID) + 1).round().astype(int)
    matrix = np.zeros((len(edges) - 1, side), np.float32)
    for row, (start, stop) in enumerate(itertools.pairwise(edges)):
        matrix[row, start:stop] = 1 / (stop - start)
    return matrix
