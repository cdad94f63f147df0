"""The path from a latent to an image, block by block: as rows, and as an animation."""

import io
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tarflow_jax import imagefiles
from tarflow_jax.errors import InputError
from tarflow_jax.files import write_atomically
from tarflow_jax.flow.patches import grid_shape
from tarflow_jax.flow.tokens import SIZE
from tarflow_jax.pictures.picture import Picture
from tarflow_jax.pictures.tiles import as_levels, as_stages, rows, scale_for_display

FORMATS = {'.png': 'PNG', '.gif': 'GIF'}
_FRAMES_PER_BLOCK = 16  # at most
_FIRST, _NEXT, _SOLVED, _LAST = 900, 70, 350, 3000  # milliseconds for which frames are shown


def journey(stages, captions: Sequence[str] = ()) -> Picture:
    """The stages of sampling as rows, the noise first.

    Args:
      stages: float [num_blocks + 1, B, H, W, C] as `sample(..., return_sequence=True)` gives them:
        the noise, then what each block is solved for, from the last block to the first.
      captions: column headings.
    """
    stages = as_stages(stages)
    last = len(stages) - 1
    named = {'noise': scale_for_display(stages[0])}
    named |= {f'block {last - i + 1} solved': scale_for_display(stages[i]) for i in range(1, last)}
    return rows({**named, 'block 1 solved: the images': stages[last]}, captions)


def animation(stages, patch_size: int, suffix: str = '.png') -> bytes:
    """The file of an animation of sampling, an APNG or GIF that repeats forever.

    It shows what the sampler does: in each block, tokens are solved one after the other, in the
    direction of the block.

    Args:
      stages: see `journey`; the images stand side by side.
      patch_size: of the model.
      suffix: '.png' or '.gif'.
    """
    if suffix not in FORMATS:
        raise InputError(f'an animation is a .png or a .gif; got {suffix!r}.')
    stages = as_stages(stages)
    grid_shape(stages.shape[2:], SIZE.check('patch_size', patch_size))  # checks it
    pictures, durations = zip(*_frames(stages, patch_size), strict=True)
    first, *others = map(Image.fromarray, pictures)
    file = io.BytesIO()
    first.save(
        *(file, FORMATS[suffix]),
        **dict(save_all=True, append_images=others, duration=list(durations), loop=0),
    )
    return file.getvalue()


def write_animation(path: str | os.PathLike, stages, patch_size: int) -> None:
    """Writes `animation` to `path`, a `.png` or a `.gif`, whole or not at all."""
    content = animation(stages, patch_size, Path(path).suffix.lower())
    write_atomically(path, lambda file: file.write(content))


def last_frame(stages) -> np.ndarray:
    """The last frame of the animation, for those who prefer no motion; uint8."""
    return _side_by_side(as_levels(stages[-1]))


def _frames(stages, patch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Frames with the milliseconds for which they are shown."""
    *latents, images = stages
    levels = [*(as_levels(scale_for_display(stage)) for stage in latents), as_levels(images)]
    yield _side_by_side(levels[0]), _FIRST
    for i, (before, after) in enumerate(itertools.pairwise(levels), start=1):
        depth = len(levels) - 1 - i  # blocks between this one and the data
        order = token_order(before.shape[1:3], patch_size, reverse=depth % 2 == 1)
        steps = min(_FRAMES_PER_BLOCK, order.max() + 1)
        for solved in np.linspace(0, order.max() + 1, steps + 1)[1:]:
            now = np.where((order < solved)[None, :, :, None], after, before)
            stays = _NEXT if solved <= order.max() else _SOLVED if depth else _LAST
            yield _side_by_side(now), stays


def token_order(shape: tuple[int, int], patch_size: int, reverse: bool) -> np.ndarray:
    """When the token of each pixel is solved, an int [H, W] from 0 on."""
    height, width = shape
    rows_of_pixels, columns = np.arange(height) // patch_size, np.arange(width) // patch_size
    order = rows_of_pixels[:, None] * (width // patch_size) + columns[None]
    return order.max() - order if reverse else order


def _side_by_side(levels: np.ndarray) -> np.ndarray:
    """Tiles images in one row, so that frame differences are narrow; small ones are in two rows."""
    is_small = min(levels.shape[1:3]) < imagefiles.VISIBLE_SIDE
    return imagefiles.image_grid(levels, columns=math.ceil(len(levels) / (1 + is_small)))
