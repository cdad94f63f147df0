"""The headers of all image files, looked at before any file is decoded."""

import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tarflow_jax.data.image_folder.tree import ImageTree
from tarflow_jax.data.image_folder.unreadable import Unreadable
from tarflow_jax.data.image_folder.workers import Workers, check_stop
from tarflow_jax.data.images import open_image
from tarflow_jax.errors import InputError

_FILES_A_TASK = 512


class HeaderTask(NamedTuple):
    """Files of a split to look at; those with a side shorter than `size` are counted."""

    root: pathlib.Path
    split: str
    paths: tuple[str, ...]
    size: int


class Headers(NamedTuple):
    """What headers tell; `smallest` is (shorter side, path), if any image is too small."""

    num_files: int
    unreadable: list[Unreadable]
    num_small: int
    smallest: tuple[int, str] | None


def survey(
    tree: ImageTree, size: int, pool: Workers, progress: Callable[[int], None]
) -> list[Unreadable]:
    """Finds the files that are no images by their headers.

    Args:
        tree: the files.
        size: the shortest side that an image may have, in pixels.
        pool: does the work.
        progress: is told how many files are done.

    Raises:
        InputError: if images are too small.
    """
    unreadable: list[Unreadable] = []
    small: list[tuple[int, str]] = []
    num_small = num_done = 0
    for headers in pool.map(check_headers, list(_tasks(tree, size))):
        unreadable += headers.unreadable
        small += [headers.smallest] if headers.smallest else []
        num_small += headers.num_small
        num_done += headers.num_files
        progress(num_done)
    if small:
        side, path = min(small)
        raise InputError(
            f'{num_small:,} of {tree.num_files:,} images have a side shorter than {size} pixels; '
            f"the smallest is '{path}' with {side}. Choose --size={side} or less, take them out, "
            'or have them enlarged with --upscale.'
        )
    return unreadable


def check_headers(task: HeaderTask) -> Headers:
    """Opens image files without decoding them."""
    unreadable = []
    small = []
    for path in task.paths:
        check_stop()
        try:
            with warnings.catch_warnings(action='ignore'), open_image(task.root / path) as image:
                side = min(image.size)
        except (OSError, ValueError) as error:
            unreadable.append(Unreadable.because(task.split, path, error))
            continue
        if side < task.size:
            small.append((side, path))
    return Headers(len(task.paths), unreadable, len(small), min(small, default=None))


def _tasks(tree: ImageTree, size: int) -> Iterator[HeaderTask]:
    for split, files in tree.splits.items():
        for start in range(0, len(files), _FILES_A_TASK):
            paths = tuple(file.path for file in files[start : start + _FILES_A_TASK])
            yield HeaderTask(tree.root, split, paths, size)
