"""Images in an .npz file, as ADM writes them."""

import pathlib

import numpy as np
from absl import logging

from tarflow_jax.data.dataset import ArraySplit, Dataset, one_split, ranges
from tarflow_jax.data.folder import PREPARE_COMMAND
from tarflow_jax.errors import InputError
from tarflow_jax.files import describe_error
from tarflow_jax.formats.npz import Header, NpzArrays
from tarflow_jax.values import format_value

IMAGE_KEYS = ('arr_0', 'images', 'image', 'data', 'x')
LABEL_KEYS = ('arr_1', 'labels', 'label', 'y')
_CONTENT = (
    'Images are uint8 [N, H, W, C], of one channel or three, under one of the keys '
    f'{", ".join(IMAGE_KEYS)}, and labels, integers [N] from 0 (-1: none), under one of '
    f'{", ".join(LABEL_KEYS)} or none. Pickled Python objects are never loaded.'
)


def open_npz(name: str) -> Dataset:
    """Reads an .npz file as a data set with one split 'train', held in memory.

    Images are uint8 [N, H, W, C] with one channel or three, under one of `IMAGE_KEYS`. Labels are
    integers [N] from 0, -1 for none, under one of `LABEL_KEYS`, or the file has none. The number of
    classes is the largest label plus one.

    Args:
        name: the path of the file.

    Raises:
        InputError: the file does not exist, is damaged, or holds something else.
    """
    images, labels = _read(name)
    splits = one_split('train', len(images))

    def open_split(spec: str) -> ArraySplit:
        """Opens a slice: a view, where it is one range."""
        parts = ranges(spec, splits)
        if len(parts) == 1:
            return ArraySplit(images[parts[0]], labels[parts[0]])
        rows = np.concatenate([np.arange(part.start, part.stop) for part in parts])
        return ArraySplit(images[rows], labels[rows])

    return Dataset(
        name,
        image_shape=images.shape[1:],
        num_classes=int(labels.max()) + 1,
        num_levels=256,
        splits=splits,
        open_split=open_split,
    )


def _read(name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with NpzArrays(pathlib.Path(name).expanduser()) as arrays:
            image_key, label_key = _checked_keys(name, arrays.headers)
            images = arrays[image_key]
            if label_key is None:
                return images, np.full(len(images), -1, np.int32)
            return images, _labels(name, arrays[label_key])
    except InputError:
        raise
    except (OSError, RuntimeError) as error:  # of a ~user that there is not
        raise InputError(
            f'{format_value(name)} cannot be opened: {describe_error(error)}. Give its path, '
            'absolute or from the working directory; copy it here, or mount its bucket, if it is '
            'a URL.'
        ) from error
    except MemoryError as error:
        raise InputError(
            f"'{name}' does not fit in memory ({error}). Make a prepared data set of its "
            f'images: {PREPARE_COMMAND} NAME --folder=DIR --size=N.'
        ) from error
    except Exception as error:  # BadZipFile, ValueError, zlib.error, EOFError, ...
        reason = str(error).strip().split('\n')[0]
        raise InputError(
            f"'{name}' cannot be read; it is damaged or no .npz file "
            f'({type(error).__name__}: {reason}). Copy or write it again.'
        ) from error


def _checked_keys(name: str, headers: dict[str, Header]) -> tuple[str, str | None]:
    """Returns the key of the images, and that of the labels if there are any."""
    images = [key for key in IMAGE_KEYS if key in headers]
    labels = [key for key in LABEL_KEYS if key in headers]
    shape, dtype = headers[images[0]] if len(images) == 1 else ((), None)
    if dtype == np.uint8 and len(shape) == 4 and min(shape) > 0 and shape[3] in (1, 3):
        if not labels:
            return images[0], None
        label_shape, label_dtype = headers[labels[0]]
        if len(labels) == 1 and label_shape == shape[:1] and label_dtype.kind in 'iu':
            return images[0], labels[0]
    content = ', '.join(f'{key} {h.dtype} {list(h.shape)}' for key, h in headers.items())
    hint = 'Put the channels last. ' if len(shape) == 4 and shape[1] in (1, 3) else ''
    raise InputError(f"'{name}' cannot be used: it has {content or 'nothing'}. {hint}{_CONTENT}")


def _labels(name: str, labels: np.ndarray) -> np.ndarray:
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < -1 or largest >= 2**31 - 1:
        raise InputError(
            f"'{name}': labels count from 0 (-1: none); it has {smallest} to {largest}."
        )
    if smallest == 1:
        logging.warning("The labels in '%s' begin at 1: class 0 has no images.", name)
    return labels.astype(np.int32)
