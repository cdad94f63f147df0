"""The headers of image files, read before any file is decoded."""

import pathlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from tarflow_jax.data.image_folder.tree import ImageFile, ImageTree
from tarflow_jax.data.image_folder.unreadable import Unreadable
from tarflow_jax.data.images import open_image

_FILES_A_TASK = 512


class HeaderTask(NamedTuple):
    """Files of a split, whose headers are to be read."""

    root: pathlib.Path
    split: str
    files: tuple[ImageFile, ...]


class Headers(NamedTuple):
    """The shorter side and the path of each image, and the files that are none."""

    sides: list[tuple[int, str]]
    unreadable: list[Unreadable]


def header_tasks(tree: ImageTree) -> Iterator[HeaderTask]:
    """Cuts the files of a tree into tasks."""
    for split, files in tree.splits.items():
        for start in range(0, len(files), _FILES_A_TASK):
            yield HeaderTask(tree.root, split, files[start : start + _FILES_A_TASK])


def read_headers(task: HeaderTask) -> Headers:
    """Opens image files without decoding them."""
    headers = Headers([], [])
    for file in task.files:
        try:
            with (
                warnings.catch_warnings(action='ignore'),
                open_image(task.root / file.path) as image,
            ):
                headers.sides.append((min(image.size), file.path))
        except (OSError, ValueError) as error:
            headers.unreadable.append(Unreadable.because(task.split, file.path, error))
    return headers
