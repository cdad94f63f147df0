"""Images to token sequences and back.

A token is a square patch of pixels. Tokens run row by row over the image, and the features of a
token run over (channel, row, column), as in the published checkpoints.
"""

import jax

from tarflow_jax.errors import InputError


def grid_shape(image_shape: tuple[int, int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of the patch grid of an (H, W, C) image; both must divide evenly."""
    height, width, _ = image_shape
    if height % patch_size or width % patch_size:
        raise InputError(
            f'an image of {height}x{width} pixels cannot be cut into patches of {patch_size}x'
            f'{patch_size}: patch_size must divide both sides '
            f'(it can be {_common_divisors(height, width)}).'
        )
    return height // patch_size, width // patch_size


@jax.named_scope('patchify')
def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images [B, H, W, C] into tokens [B, T, P]."""
    batch, height, width, channels = images.shape
    rows, columns = grid_shape((height, width, channels), patch_size)
    x = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4)  # B, row of patches, column of patches, C, row, column
    return x.reshape(batch, rows * columns, channels * patch_size**2)


@jax.named_scope('unpatchify')
def unpatchify(tokens: jax.Array, patch_size: int, image_shape: tuple[int, int, int]) -> jax.Array:
    """Assembles tokens [B, T, P] into images [B, H, W, C]; inverts `patchify`."""
    height, width, channels = image_shape
    rows, columns = grid_shape(image_shape, patch_size)
    x = tokens.reshape(-1, rows, columns, channels, patch_size, patch_size)
    x = x.transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(-1, height, width, channels)


def _common_divisors(height: int, width: int) -> str:
    divisors = [n for n in range(1, min(height, width) + 1) if height % n == 0 == width % n]
    return ', '.join(map(str, divisors))
