"""Images in an .npz file, as EDM, ADM and the downsampled ImageNet have them."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from tarflow_jax.data.splits import ArraySplit, Split, ranges, split_sizes
from tarflow_jax.errors import InputError
from tarflow_jax.files import reason_of
from tarflow_jax.formats.npz import Header, NpzArrays
from tarflow_jax.values import shown

IMAGE_KEYS = ('arr_0', 'images', 'image', 'data', 'x')
LABEL_KEYS = ('arr_1', 'labels', 'label', 'y')
_FLAT_KEY = 'data'
_READS = (
    f'Read are images uint8 [N, H, W, C] under one of the keys {", ".join(IMAGE_KEYS)} (under '
    f'{_FLAT_KEY} also [N, 3*S*S], planes of red, green and blue), and labels, integers [N] from 0 '
    f'(-1: none) or one-hot [N, K], under one of {", ".join(LABEL_KEYS)} or none.'
)


class NpzFile:
    """An .npz file as one split 'train', held in memory.

    Images are uint8 [N, H, W, C] with one to four channels, under one of `IMAGE_KEYS`. Under
    'data' they may also be [N, 3 * S * S], the red, green and blue planes of S x S pixels end to
    end, as in the downsampled ImageNet. Labels are integers [N] from 0, -1 for none, or one-hot
    [N, K], under one of `LABEL_KEYS`, or none at all.

    Attributes:
        image_shape: (H, W, C) of every image.
        num_classes: K of one-hot labels, else the largest label + 1; 0 without labels.
        num_levels: 256.
        splits: the split 'train', of all images.
    """

    num_levels = 256

    def __init__(self, name: str):
        """Reads the file; the name is its path.

        Raises:
            InputError: if it is not there, damaged, or holds something else.
        """
        self._name = name
        path = _checked_path(name)
        try:
            with NpzArrays(path) as arrays:
                headers = arrays.headers
                image_key, label_key = _checked_keys(name, headers)
                self.image_shape = _checked_shape(name, image_key, headers[image_key])
                num_images = headers[image_key].shape[0]
                if label_key:
                    _check_labels_header(name, label_key, headers[label_key], num_images)
                self._images = _as_images(arrays[image_key], self.image_shape)
                labels = arrays[label_key] if label_key else np.full(num_images, -1)
        except InputError:
            raise
        except MemoryError as error:
            raise InputError(
                f"'{name}' does not fit in memory ({error}). Make a prepared data set of its "
                'images: python -m tarflow_jax.data.prepare NAME --folder=DIR --size=N.'
            ) from error
        except Exception as error:  # BadZipFile, ValueError, zlib.error, EOFError, OSError, ...
            reason = str(error).strip().split('\n')[0]
            raise InputError(
                f"'{name}' cannot be read; it is damaged or no .npz file "
                f'({type(error).__name__}: {reason}). Copy or write it anew.'
            ) from error
        self._labels, self.num_classes = _as_labels(name, label_key, labels)
        self.splits = split_sizes({'train': num_images})

    def open_split(self, spec: str) -> Split:
        """The split 'train' or a slice of it: a view, where it is one range."""
        rows = [slice(start, stop) for _, start, stop in ranges(spec, self.splits, self._name)]
        return ArraySplit(_joined(self._images, rows), _joined(self._labels, rows))


def _joined(array: np.ndarray, rows: Sequence[slice]) -> np.ndarray:
    return array[rows[0]] if len(rows) == 1 else np.concatenate([array[part] for part in rows])


def _checked_path(name: str) -> pathlib.Path:
    try:
        path = pathlib.Path(name).expanduser()
        is_there = path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long; a ~user that there is not
        raise InputError(f'{shown(name)} cannot be opened: {reason_of(error)}.') from error
    if not is_there:
        reason = (
            'it is an address: copy the file here, or mount the bucket'
            if '://' in name
            else 'there is no such file: give its path, absolute or from the working directory'
        )
        raise InputError(f"'{name}' cannot be opened; {reason}.")
    return path


def _checked_keys(name: str, headers: dict[str, Header]) -> tuple[str, str | None]:
    images = [key for key in IMAGE_KEYS if key in headers]
    labels = [key for key in LABEL_KEYS if key in headers]
    if len(images) != 1 or len(labels) > 1:
        held = ', '.join(f'{key} {h.dtype} {list(h.shape)}' for key, h in headers.items())
        raise InputError(
            f"'{name}' holds {'no' if not images else 'more than one'} array of "
            f'{"images" if len(images) != 1 else "labels"}: it has {held or "nothing"}. {_READS}'
        )
    return images[0], labels[0] if labels else None


def _checked_shape(name: str, key: str, header: Header) -> tuple[int, int, int]:
    shape, dtype = header
    if dtype == np.uint8 and shape and shape[0] > 0:
        if len(shape) == 4 and 1 <= shape[3] <= 4 and min(shape) > 0:
            return shape[1], shape[2], shape[3]
        if len(shape) == 2 and key == _FLAT_KEY and shape[1] > 0:
            side = math.isqrt(shape[1] // 3)
            if shape[1] == 3 * side * side:
                return side, side, 3
    hint = ''
    if dtype.hasobject:
        hint = 'Pickled Python objects are never loaded. '
    elif len(shape) == 4 and shape[1] in (1, 3):
        hint = 'Put the channels last. '
    raise InputError(
        f"'{name}' cannot be used: {key} is {dtype} {list(shape)}. {hint}{_READS}",
    )


def _as_images(array: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    if array.ndim == 4:
        return array
    height, width, channels = image_shape
    planes = array.reshape(-1, channels, height, width)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _check_labels_header(name: str, key: str, header: Header, num_images: int) -> None:
    shape, dtype = header
    is_number = dtype.kind in 'iu' or (dtype.kind in 'fb' and len(shape) == 2)
    if len(shape) not in (1, 2) or shape[0] != num_images or not is_number:
        hint = 'Pickled Python objects are never loaded. ' if dtype.hasobject else ''
        raise InputError(
            f"'{name}' cannot be used: {key} is {dtype} {list(shape)} beside {num_images} images. "
            f'{hint}{_READS}'
        )


def _as_labels(name: str, key: str | None, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels int32 [N] and the number of classes."""
    if labels.ndim == 2:
        is_one_hot = np.all((labels == 0) | (labels == 1)) and np.all((labels == 1).sum(1) == 1)
        if not is_one_hot:
            raise InputError(f"'{name}': the rows of {key} {list(labels.shape)} are not one-hot.")
        return labels.argmax(1).astype(np.int32), labels.shape[1]
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < -1 or largest >= 2**31 - 1:
        raise InputError(
            f"'{name}': labels count from 0 (-1: none); {key} has {smallest} to {largest}."
        )
    if smallest == 1:
        logging.warning("The labels in '%s' begin at 1: class 0 has no images.", name)
    return labels.astype(np.int32), largest + 1
