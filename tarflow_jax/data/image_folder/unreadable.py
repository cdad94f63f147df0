"""Image files that cannot be read: their names, the reasons, and how many are too many."""

import errno
import pathlib
from collections.abc import Collection, Mapping
from typing import NamedTuple, Self

import PIL

from tarflow_jax.errors import InputError
from tarflow_jax.files import write_atomically

FILE_NAME = 'unreadable.txt'
_SHOWN = 3
_BROKEN_LINK = (errno.ENOENT, errno.ELOOP)


class Unreadable(NamedTuple):
    """A file that cannot be read; its path is relative to the tree's root."""

    split: str
    path: str
    reason: str

    @classmethod
    def because(cls, split: str, path: str, error: Exception) -> Self:
        """Makes a line of what Pillow raised.

        Raises:
            OSError: the error itself if it is the operating system's, of a disk, a network or a
                permission, which says nothing of the image and can be corrected.
        """
        if isinstance(error, OSError) and error.errno and error.errno not in _BROKEN_LINK:
            raise error
        if isinstance(error, PIL.UnidentifiedImageError):
            return cls(split, path, 'no image')
        lines = str(error).strip().splitlines()
        return cls(split, path, lines[0] if lines else type(error).__name__)


def check_share(
    files: Collection[Unreadable],
    totals: Mapping[str, int],
    max_percent: float,
    folder: pathlib.Path,
) -> None:
    """Checks that no more files of a split are unreadable than are allowed, nor all of them.

    Args:
        files: the unreadable files.
        totals: the number of image files in each split.
        max_percent: the percentage of a split that may be unreadable.
        folder: where `unreadable.txt` is written if there are too many.

    Raises:
        InputError: there are too many.
    """
    for split, total in totals.items():
        of_split = [file for file in files if file.split == split]
        if len(of_split) * 100 > max_percent * total:
            limit = f'more than --max_unreadable={max_percent:g} per cent'
        elif len(of_split) == total:
            limit = 'all there are'
        else:
            continue
        write_list(files, folder)
        raise InputError(
            f'{len(of_split):,} of {total:,} files of the {split} split cannot be read '
            f'({examples(of_split)}): {limit}. All are named in '
            f"'{folder / FILE_NAME}': repair or delete them, or allow more."
        )


def write_list(files: Collection[Unreadable], folder: pathlib.Path) -> None:
    """Writes `unreadable.txt`, a line for each file."""
    text = ''.join(f'{file.path}: {file.reason}\n' for file in sorted(files))
    content = text.encode(errors='surrogateescape')  # a name may be any bytes
    write_atomically(folder / FILE_NAME, lambda file: file.write(content))


def examples(files: Collection[Unreadable]) -> str:
    """Returns the first few files and their reasons, for a message."""
    shown = [f"'{file.path}': {file.reason}" for file in sorted(files)[:_SHOWN]]
    return ', '.join(shown if len(files) <= _SHOWN else [*shown, '...'])
