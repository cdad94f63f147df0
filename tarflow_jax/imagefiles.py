"""Converts images to 8 bits, lays them out in a grid, and writes them to files."""

import contextlib
import functools
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tarflow_jax.files import open_atomically, write_atomically

VISIBLE_SIDE = 64  # pixels; images with a shorter side are enlarged in a grid
_SEPARATOR = 2  # pixels of grey between neighbours in a grid
_GREY = 128
_HEADING = 18  # pixels of height


def to_uint8(images: Any) -> np.ndarray:
    """Converts floats in [-1, 1], of any shape, to uint8 of 0 to 255.

    Values beyond the range are clipped to it, then the nearest of the 256 levels is taken (a tie
    goes to the even one). This inverts `levels / 127.5 - 1` exactly. NaN, which a diverged model
    may give, becomes the grey of 128.
    """
    values = np.nan_to_num(np.asarray(images, np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
    return np.rint((np.clip(values, -1, 1) + 1) * 127.5).astype(np.uint8)


def image_grid(
    images: np.ndarray, captions: Sequence[str] = (), columns: int | None = None
) -> np.ndarray:
    """Lays images side by side, row by row, in one image.

    Args:
      images: uint8 [B, H, W, C] with C of 1 or 3. Those with a side of less than 64 pixels are
        enlarged by a whole factor, each pixel to a square.
      captions: column headings. Image i belongs to heading i modulo their number, and each heading
        stands over one column or several.
      columns: of the grid; by default as many as make it nearly a square.

    Returns:
      uint8 [height, width, 3], or [height, width] for images of one channel. Places left over in
      the last row are grey.

    Raises:
      ValueError: the images are not of that type or shape, or there is none of them.
    """
    _check_images(images)
    images = _enlarge(images)
    count, height, width, channels = images.shape
    columns = columns or min(count, math.ceil(math.sqrt(count * height / width)))
    if captions:
        columns = math.ceil(columns / len(captions)) * len(captions)
    rows = math.ceil(count / columns)
    cell_height, cell_width = height + _SEPARATOR, width + _SEPARATOR
    grid = np.full((rows * cell_height, columns * cell_width, channels), _GREY, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * cell_height, index % columns * cell_width
        grid[top : top + height, left : left + width] = image
    grid = grid[: rows * cell_height - _SEPARATOR, : columns * cell_width - _SEPARATOR]
    grid = grid[..., 0] if channels == 1 else grid
    if captions:
        words = [captions[column % len(captions)] for column in range(columns)]
        grid = np.concatenate([_headings(words, cell_width, grid), grid])
    return grid


def _headings(words: Sequence[str], cell_width: int, grid: np.ndarray) -> np.ndarray:
    """A strip of words, one over the middle of each column, as wide as the grid.

    The end of a word that is wider than its column is left out.
    """
    strip = Image.fromarray(np.full((_HEADING, *grid.shape[1:]), _GREY, np.uint8))
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(_HEADING - 4)
    for column, word in enumerate(words):
        while font.getlength(word) > cell_width:
            word = word.removesuffix('…')[:-1] + '…'
        middle = column * cell_width + (cell_width - _SEPARATOR) / 2, _HEADING / 2
        draw.text(middle, word, fill='white', font=font, anchor='mm')
    return np.asarray(strip)


def encode_png(image: np.ndarray) -> bytes:
    """Returns the PNG file of a uint8 image [H, W], [H, W, 1] or [H, W, 3].

    The bytes depend on the image alone. Raises ValueError for another type or shape.
    """
    _check_images(image[None, ..., None] if image.ndim == 2 else image[None])
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(file, 'PNG')
    return file.getvalue()


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes `image` to `path`, atomically; for its type and shape see `encode_png`."""
    png = encode_png(image)
    write_atomically(path, lambda file: file.write(png))


def write_npz(path: str | os.PathLike, /, **arrays: Any) -> None:
    """Writes the named arrays to `path`, atomically, for `numpy.load`."""
    write_atomically(path, functools.partial(np.savez, **arrays))


@contextlib.contextmanager
def npz_writer(
    path: str | os.PathLike, shape: tuple[int, ...], labels: np.ndarray | None = None
) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes many images to `path` batch by batch, as ADM's sample batches are: `arr_0`, `arr_1`.

    The file appears when all of them are there. It is never in memory as a whole.

    Args:
      path: the path of the .npz file.
      shape: (N, H, W, C) of all images.
      labels: int [N], which go into `arr_1`; none for None.

    Yields:
      A function that takes the next uint8 images [n, H, W, C].

    Raises:
      ValueError: fewer or more images were given than `shape` says.
    """
    with (
        open_atomically(path) as file,
        zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive,
    ):
        if labels is not None:
            with archive.open('arr_1.npy', 'w') as member:
                np.lib.format.write_array(member, labels, allow_pickle=False)
        written = 0
        with archive.open('arr_0.npy', 'w', force_zip64=True) as member:
            header = {'descr': '|u1', 'fortran_order': False, 'shape': tuple(shape)}
            np.lib.format.write_array_header_1_0(member, header)

            def write(images: np.ndarray) -> None:
                nonlocal written
                _check_images(images)
                member.write(np.ascontiguousarray(images).data)
                written += len(images)

            yield write
        if written != shape[0]:
            raise ValueError(f'got {written} images, not the {shape[0]} that were announced.')


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f'got {images.dtype} {list(images.shape)}; expected uint8 images [..., H, W, C] '
            f'with 1 or 3 channels (to_uint8 makes them from floats).'
        )
    if 0 in images.shape:
        raise ValueError(f'got images of shape {list(images.shape)}: there is nothing to show.')


def _enlarge(images: np.ndarray) -> np.ndarray:
    factor = max(1, VISIBLE_SIDE // min(images.shape[1:3]))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)
