"""Images side by side, with captions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tarflow_jax.errors import InputError
from tarflow_jax.imagefiles import to_uint8
from tarflow_jax.pictures.picture import WIDTH, Picture, blank, house_style

MAX_COLUMNS = 16  # of a grid whose columns are classes
_CAPTIONED_COLUMNS = 6  # where every image has a caption
_MAX_CAPTION_LENGTH = 16  # characters of a caption over a column
_GAP = 0.06  # between images, relative to their width
_LINE = 0.2  # inches of a line of captions
_PIXELS_SEEN = 64  # images with a shorter side are shown pixel by pixel


def grid(images, labels=None, names: Sequence[str] | None = None) -> Picture:
    """A grid of images, lined up by class.

    Args:
      images: uint8, or float in [-1, 1]: [B, H, W, C] with C of 1 or 3.
      labels: int [B], -1 for none. Up to 16 classes have columns of their own, equally many
        each; with more classes, every image has its own caption. None for a grid without captions.
      names: the names of the classes; by default their numbers.

    Returns:
      The picture; rows that a class does not fill stay empty.
    """
    images = as_levels(images)
    if labels is None:
        columns = _columns(images)
        return _draw([images[i : i + columns] for i in range(0, len(images), columns)])
    labels = np.asarray(labels)
    if labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu':
        raise InputError(
            f'labels must be whole numbers, one for each of {len(images)} images (names gives what '
            f'they are called); got {labels.dtype} of shape {list(labels.shape)}.'
        )
    order = np.argsort(labels, kind='stable')
    images, labels = images[order], labels[order]
    classes = np.unique(labels)
    captions = [_name(label, names) for label in labels]
    if len(classes) > MAX_COLUMNS:
        columns = min(_columns(images), _CAPTIONED_COLUMNS)
        starts = range(0, len(images), columns)
        rows = [images[i : i + columns] for i in starts]
        return _draw(rows, above=[captions[i : i + columns] for i in starts])
    of_class = [images[labels == label] for label in classes]
    width = max(1, _columns(images) // len(classes))
    starts = range(0, max(map(len, of_class)), width)
    rows = [[image for group in of_class for image in _filled(group, i, width)] for i in starts]
    return _draw(rows, above=[[_name(label, names) for label in classes]])


def rows(images: Mapping[str, Any], captions: Sequence[str] = ()) -> Picture:
    """Rows of images, each under a caption of its own.

    Args:
      images: for each caption uint8 or float [B, H, W, C]. Rows may differ in the number and
        the size of their images; about ten in a row are still seen on a phone.
      captions: column headings.
    """
    if not images:
        raise InputError('there are no rows of images to show.')
    levels = {caption: as_levels(of_row) for caption, of_row in images.items()}
    return _draw(list(levels.values()), titles=list(levels), above=[list(captions)])


def comparison(
    sampled, denoised=None, guided=None, captions: Sequence[str] = (), weight: float | None = None
) -> Picture:
    """The same noise as images: as sampled, after the denoising step, and with guidance.

    Args:
      sampled: float [B, H, W, C], as `sample` returns them without guidance.
      denoised: the same after `denoise`; None for a model without Gaussian noise.
      guided: from the same noise with guidance; None leaves the row out.
      captions: column headings.
      weight: of the guidance, for its caption.
    """
    of = '' if weight is None else f', weight {weight:g}'
    stages = {'as sampled': sampled, 'denoised': denoised, f'guided{of}': guided}
    return rows({name: x for name, x in stages.items() if x is not None}, captions)


def resolutions(samples: Mapping[str, Any]) -> Picture:
    """Samples of several models in one picture, a row each, every row as wide as the picture.

    Args:
      samples: for each model's name uint8 or float [B, H, W, C]; their sizes go into the captions.
    """
    shapes = {name: np.shape(images)[1:3] for name, images in samples.items()}
    return rows({f'{name}, {h}×{w}': samples[name] for name, (h, w) in shapes.items()})


def as_levels(images) -> np.ndarray:
    """Images, whole numbers in 0 to 255 or float in [-1, 1], as uint8 [B, H, W, C].

    Raises:
      InputError: they have another shape, other numbers of channels than 1 and 3, or other values.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise InputError(
            f'got images of shape {list(images.shape)}; a picture shows [B, H, W, C] with 1 or 3 '
            'channels.'
        )
    if images.dtype.kind not in 'iu':
        return to_uint8(images)
    if images.min() < 0 or images.max() > 255:
        raise InputError(
            f'images of whole numbers must lie in 0..255; got {images.min()} to {images.max()}.'
        )
    return images.astype(np.uint8)


def as_stages(stages) -> np.ndarray:
    """Images and latents by block, as an array [num_blocks + 1, B, H, W, C].

    Raises:
      InputError: they have another shape.
    """
    stages = np.asarray(stages)
    if stages.ndim != 5 or len(stages) < 2:
        raise InputError(
            f'stages are images and latents by block, [num_blocks + 1, B, H, W, C]; got the shape '
            f'{list(stages.shape)}.'
        )
    return stages


def scale_for_display(latents) -> np.ndarray:
    """Scales latents of any range for display, so that 99 of 100 pixels lie in [-1, 1]."""
    latents = np.asarray(latents, np.float32)
    sizes = np.abs(latents[np.isfinite(latents)])
    return latents / max(1.0, np.quantile(sizes, 0.99) if sizes.size else 1.0)


def _filled(images: np.ndarray, start: int, width: int) -> list[np.ndarray | None]:
    """`width` images from `start` on, None where there are no more."""
    present: list[np.ndarray | None] = list(images[start : start + width])
    return present + [None] * (width - len(present))


def _columns(images: np.ndarray) -> int:
    count, height, width, _ = images.shape
    return min(count, math.ceil(math.sqrt(count * height / width)))


def _name(label: int, names: Sequence[str] | None) -> str:
    if label < 0:
        return 'no label'
    return str(names[label]) if names is not None and label < len(names) else str(label)


@house_style
def _draw(images, titles: Sequence[str] = (), above: Sequence[Sequence[str]] = ()) -> Picture:
    """The picture of some rows of images, with a title over each and captions over each image.

    Captions `above` are for the rows from the first on, each over as many images. None is an empty
    cell.
    """
    picture, panel = blank(1.0)
    top = 0.0
    for number, of_row in enumerate(images):
        pitch = WIDTH / len(of_row)
        if number < len(above) and above[number]:
            _draw_captions(panel, above[number], top)
            top += _LINE
        if number < len(titles):
            panel.text(0, top + _LINE / 2, titles[number], va='center', weight='bold', size=9.5)
            top += _LINE * 1.15
        top = _draw_row(panel, of_row, pitch, top)
    panel.set(ylim=(top, 0), aspect='auto')
    picture.set_size_inches(WIDTH, top)
    return picture


def _draw_captions(panel, captions: Sequence[str], top: float) -> None:
    pitch = WIDTH / len(captions)
    captions = [
        c if len(c) <= _MAX_CAPTION_LENGTH else f'{c[: _MAX_CAPTION_LENGTH - 1]}…' for c in captions
    ]
    size = min(9.5, 1.6 * 72 * pitch / max(map(len, captions)))
    for column, caption in enumerate(captions):
        middle = (column + 0.5 / (1 + _GAP)) * pitch
        panel.text(middle, top + _LINE / 2, caption, ha='center', va='center', size=size)


def _draw_row(panel, images, pitch: float, top: float) -> float:
    """Draws images that are `pitch` inches apart below `top`; returns where the row ends."""
    shape = next(np.shape(image) for image in images if image is not None)
    width = pitch / (1 + _GAP)
    height = width * shape[0] / shape[1]
    interpolation = 'none' if min(shape[:2]) < _PIXELS_SEEN else 'antialiased'
    for column, image in enumerate(images):
        if image is None:
            continue
        left = column * pitch
        panel.imshow(
            image[..., 0] if shape[2] == 1 else image,
            **dict(cmap='gray', vmin=0, vmax=255, interpolation=interpolation, aspect='auto'),
            extent=(left, left + width, top + height, top),
        )
    return top + height + pitch - width
