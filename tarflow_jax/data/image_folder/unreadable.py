"""Files that are no images despite their names: which, why, and whether they are too many."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

import PIL

from tarflow_jax.data.image_folder.tree import leads_nowhere
from tarflow_jax.errors import InputError
from tarflow_jax.files import write_atomically

FILE_NAME = 'unreadable.txt'
_SHOWN = 3


class Unreadable(NamedTuple):
    """A file of a split; its path is relative to the tree's root."""

    split: str
    path: str
    reason: str

    @classmethod
    def because(cls, split: str, path: str, error: Exception) -> Self:
        """Tells in a few words what Pillow raised.

        Raises:
            OSError: the error itself if the operating system's, of a disk, a network, a permission:
                it may be mended, and says nothing of the image.
        """
        if isinstance(error, OSError) and error.errno and not leads_nowhere(error):
            raise error
        if isinstance(error, PIL.UnidentifiedImageError):
            return cls(split, path, 'no image')
        lines = str(error).strip().splitlines()
        return cls(split, path, lines[0] if lines else type(error).__name__)


def unreadable_of(rows: Any) -> list[Unreadable]:
    """From what JSON made of them; raises ValueError or TypeError if that is something else."""
    files = [Unreadable(*row) for row in rows]
    if not all(isinstance(text, str) for file in files for text in file):
        raise ValueError('an unreadable file is told by its split, path and reason')
    return files


class LeftOut:
    """The unreadable files of a data set, no more of them than are allowed.

    Args:
        totals: the number of files in each split.
        max_percent: of a split that may be left out.
        folder: where the list is written if there are too many.
    """

    def __init__(self, totals: Mapping[str, int], max_percent: float, folder: pathlib.Path):
        self._totals = totals
        self._max_percent = max_percent
        self._folder = folder
        self._files: set[Unreadable] = set()

    def __len__(self) -> int:
        return len(self._files)

    def __str__(self) -> str:
        """The first few."""
        return _examples(sorted(self._files))

    def paths(self) -> set[str]:
        return {file.path for file in self._files}

    def add(self, files: Iterable[Unreadable]) -> None:
        """Leaves files out.

        Raises:
            InputError: if those are too many, or there is nothing else in the split.
        """
        self._files.update(files)
        for split, total in self._totals.items():
            of_split = sorted(file for file in self._files if file.split == split)
            if len(of_split) * 100 > self._max_percent * total:
                limit = f'more than --max_unreadable={self._max_percent:g} per cent'
            elif len(of_split) == total:
                limit = 'all there are'
            else:
                continue
            self.write(self._folder)
            raise InputError(
                f'{len(of_split):,} of {total:,} files of the {split} split cannot be read '
                f'({_examples(of_split)}): {limit}. All are named in '
                f"'{self._folder / FILE_NAME}': mend or delete them, or allow more."
            )

    def write(self, folder: pathlib.Path) -> None:
        """Writes `unreadable.txt`, a line for each file."""
        text = ''.join(f'{file.path}: {file.reason}\n' for file in sorted(self._files))
        content = text.encode(errors='surrogateescape')  # a name may be any bytes
        write_atomically(folder / FILE_NAME, lambda file: file.write(content))


def _examples(files: list[Unreadable]) -> str:
    shown = ', '.join(f"'{file.path}': {file.reason}" for file in files[:_SHOWN])
    return shown if len(files) <= _SHOWN else f'{shown}, ...'
