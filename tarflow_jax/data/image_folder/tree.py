"""Class-folder trees of image files: which images, splits and classes a folder holds."""

import collections
import dataclasses
import errno
import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from tarflow_jax.errors import InputError

SPLITS = {
    'train': 'train',
    'val': 'validation',
    'valid': 'validation',
    'validation': 'validation',
    'test': 'test',
}
EXTENSIONS = (
    *('.avif', '.bmp', '.gif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg'),
    *('.pgm', '.png', '.pnm', '.ppm', '.tif', '.tiff', '.webp'),
)
_SHOWN = 5


class ImageFile(NamedTuple):
    """A file that is an image by its extension; nothing of it has been read.

    The path is relative to the tree's root, with '/'. A link to nowhere, or in a circle, has a
    size of -1.
    """

    path: str
    label: int
    size: int
    modified_ns: int


@dataclasses.dataclass(frozen=True)
class ImageTree:
    """The images below `<root>/<class>/` or `<root>/<split>/<class>/`.

    Attributes:
        root: the absolute path.
        classes: names of the training split's class folders, sorted; a label is an index into it.
        splits: the files of 'train', 'validation' and 'test', as far as they are there. Their order
            looks random and depends on their paths alone, so that every part mixes the classes.
        ignored: how many files have an extension of no image, by extension.
    """

    root: pathlib.Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[ImageFile, ...]]
    ignored: dict[str, int]

    @property
    def num_files(self) -> int:
        return sum(len(files) for files in self.splits.values())

    def fingerprint(self) -> str:
        """A hash of every file's path, label, size and time of change, and of the class names."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for split, files in self.splits.items():
            for file in files:
                digest.update(repr((split, *file)).encode())
        return digest.hexdigest()


def read_tree(folder: str | os.PathLike[str]) -> ImageTree:
    """Lists the images of a class-folder tree, without opening any.

    Files and folders whose names begin with a dot are passed over.

    Raises:
        InputError: if the folder is not there or cannot be read, or is no such tree.
    """
    if not os.fspath(folder):
        raise InputError('the folder of images has an empty name; give --folder=DIR.')
    root = pathlib.Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise InputError(f"there is no folder '{root}'; give one with a folder for each class.")
    try:
        return _read_tree(root)
    except OSError as error:
        raise InputError(f"the folder '{root}' cannot be read ({error}).") from error


def _read_tree(root: pathlib.Path) -> ImageTree:
    top = _Listing(root)
    top.check_no_images()
    split_folders = [name for name in top.folders if name.lower() in SPLITS]
    if not split_folders:
        class_folders = {'train': _class_folders(top)}
    elif split_folders == top.folders:
        class_folders = _split_class_folders(root, split_folders)
    else:
        others = [name for name in top.folders if name not in split_folders]
        raise InputError(
            f"'{root}' has {_names(split_folders)} beside {_names(others)}: taken as classes, the "
            "images of other splits would leak into training. Put the training images' class "
            "folders into a folder 'train' beside it, or rename it if it is a class."
        )
    classes = tuple(folder.name for folder in class_folders['train'])
    for split, folders in class_folders.items():
        if unknown := [folder.name for folder in folders if folder.name not in classes]:
            raise InputError(
                f'the {split} split has classes that the training split lacks: {_names(unknown)}. '
                'Every class must have training images.'
            )
    ignored = collections.Counter(top.ignored())
    splits = {}
    for split, folders in class_folders.items():
        listings = [_Listing(folder) for folder in folders]
        ignored.update(extension for listing in listings for extension in listing.ignored())
        splits[split] = _files(root, listings, classes)
        _check_not_empty(root, split, listings, ignored)
    return ImageTree(root, classes, splits, dict(sorted(ignored.items())))


class _Listing:
    """The sorted names in a folder, and what the file system tells of the files."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.folders: list[str] = []
        self.files: list[tuple[str, int, int]] = []  # name, size, time of change
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith('.'):
                    continue
                if _is_folder(entry):
                    self.folders.append(entry.name)
                else:
                    self.files.append((entry.name, *_stat(entry)))

    def images(self) -> list[tuple[str, int, int]]:
        return [file for file in self.files if _extension(file[0]) in EXTENSIONS]

    def ignored(self) -> list[str]:
        extensions = (_extension(name) for name, _, _ in self.files)
        return [extension for extension in extensions if extension not in EXTENSIONS]

    def check_no_images(self) -> None:
        if images := self.images():
            raise InputError(
                f"'{self.folder}' has {len(images):,} images directly in it ('{images[0][0]}', "
                'say), and they belong into one folder for each class. If there are no classes, '
                f"put all into a single one: '{self.folder / 'images'}'."
            )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if leads_nowhere(error):
            return False
        raise


def _stat(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError as error:
        if leads_nowhere(error):  # it is named when it cannot be opened
            return -1, 0
        raise
    return status.st_size, status.st_mtime_ns


def leads_nowhere(error: OSError) -> bool:
    """Whether the error is that of a link to no file, or to itself in the end."""
    return error.errno in (errno.ENOENT, errno.ELOOP)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _split_class_folders(root: pathlib.Path, names: list[str]) -> dict[str, list[pathlib.Path]]:
    folders: dict[str, list[pathlib.Path]] = {}
    for name in sorted(names, key=lambda name: list(SPLITS).index(name.lower())):
        split = SPLITS[name.lower()]
        if split in folders:
            raise InputError(
                f"'{root}' has several folders for the {split} split: {_names(names)}. Leave one."
            )
        listing = _Listing(root / name)
        listing.check_no_images()
        folders[split] = _class_folders(listing)
    if 'train' not in folders:
        raise InputError(
            f"'{root}' has {_names(names)} but no 'train'; put the training images' class folders "
            "into a folder 'train' beside it."
        )
    return folders


def _class_folders(listing: _Listing) -> list[pathlib.Path]:
    if not listing.folders:
        raise InputError(
            f"'{listing.folder}' is empty: it has no class folders. Images are expected as "
            'CLASS/FILE or SPLIT/CLASS/FILE, with splits named train, val and test.'
        )
    for name in listing.folders:
        if not name.isprintable() or name != name.strip():
            raise InputError(
                f'the class folder {name!r} in {str(listing.folder)!r} needs a name of printable '
                'characters, without spaces around them.'
            )
    return [listing.folder / name for name in listing.folders]


def _files(
    root: pathlib.Path, listings: list[_Listing], classes: tuple[str, ...]
) -> tuple[ImageFile, ...]:
    """The files of a split's class folders, in the order of a hash of CLASS/FILE."""
    keyed = []
    for listing in listings:
        if listing.folders:
            raise InputError(
                f"the class folder '{listing.folder}' has folders in it "
                f'({_names(listing.folders)}); images must lie directly in it. Is the folder that '
                'was given one level too high?'
            )
        name = listing.folder.name
        label = classes.index(name)
        parent = listing.folder.relative_to(root).as_posix()
        for file, size, modified_ns in listing.images():
            key = hashlib.sha256(os.fsencode(f'{name}/{file}')).digest()
            image = ImageFile(f'{parent}/{file}', label, size, modified_ns)
            keyed.append((key, image))
    return tuple(image for _, image in sorted(keyed))


def _check_not_empty(
    root: pathlib.Path, split: str, listings: list[_Listing], ignored: dict[str, int]
) -> None:
    empty = [listing.folder.name for listing in listings if not listing.images()]
    if empty and (split == 'train' or len(empty) == len(listings)):
        other = f' Files of other kinds: {describe_ignored(ignored)}.' if ignored else ''
        raise InputError(
            f"'{root}' has classes without an image in the {split} split: {_names(empty)}. Delete "
            f'such folders, or fill them.{other}'
        )


def describe_ignored(ignored: dict[str, int]) -> str:
    """Counts by extension, as '3 .txt, 1 without extension'."""
    return ', '.join(
        f'{count:,} {extension or "without extension"}' for extension, count in ignored.items()
    )


def _names(names: Iterable[str]) -> str:
    names = list(names)
    shown = ', '.join(f"'{name}'" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f'{shown} and {len(names) - _SHOWN:,} more'
