"""Class-folder trees of image files: which images, splits and classes a folder holds."""

import collections
import dataclasses
import hashlib
import os
import pathlib
import stat
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
ONLY_CLASS = 'images'  # of a folder without class folders
_SHOWN = 5


class ImageFile(NamedTuple):
    """A file that is an image by its extension; nothing of it has been read.

    The path is relative to the tree's root, with '/'.
    """

    path: str
    label: int
    size: int
    modified_ns: int


@dataclasses.dataclass(frozen=True)
class ImageTree:
    """The images below `<root>/<class>/` or `<root>/<split>/<class>/`, or without `<class>/`.

    Attributes:
        root: the absolute path.
        classes: names of the training split's class folders, sorted; a label is an index into it.
            Without class folders the only class is 'images'.
        splits: the files of 'train', 'validation' and 'test', as far as they are there. Their order
            looks random and depends on their paths alone, so that every part mixes the classes.
        ignored: how many files have an extension of no image, by extension.
    """

    root: pathlib.Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[ImageFile, ...]]
    ignored: dict[str, int]

    def fingerprint(self, *settings: object) -> str:
        """Returns a hash of settings, the classes, and all paths, sizes and times of change."""
        digest = hashlib.sha256(repr((settings, self.classes)).encode())
        for split, files in self.splits.items():
            for file in files:
                digest.update(repr((split, *file)).encode())
        return digest.hexdigest()[:16]


def read_tree(folder: str | os.PathLike[str]) -> ImageTree:
    """Lists the images of a class-folder tree, or of a plain folder, without opening any.

    Files and folders whose names begin with a dot are passed over.

    Raises:
        InputError: the folder does not exist, cannot be read, or is no such tree.
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
    class_folders = _class_folders_of_splits(top)
    classes = tuple(listing.class_name for listing in class_folders['train'])
    ignored = collections.Counter([] if top in class_folders['train'] else top.ignored)
    splits = {}
    for split, listings in class_folders.items():
        if unknown := [x.class_name for x in listings if x.class_name not in classes]:
            raise InputError(
                f'the {split} split has classes that the training split lacks: {_names(unknown)}. '
                'Every class must have training images.'
            )
        ignored.update(extension for listing in listings for extension in listing.ignored)
        _check_not_empty(root, split, listings)
        splits[split] = _files(root, listings, classes)
    return ImageTree(root, classes, splits, dict(sorted(ignored.items())))


class _Listing:
    """The sorted names of folders and image files in a folder, and the extensions of the rest."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.class_name = folder.name
        self.folders: list[str] = []
        self.images: list[tuple[str, int, int]] = []  # name, size, time of change
        self.ignored: list[str] = []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not entry.name.startswith('.'):
                    self._add(entry)

    def _add(self, entry: os.DirEntry[str]) -> None:
        status = _status(entry)
        extension = os.path.splitext(entry.name)[1].lower()
        if stat.S_ISDIR(status.st_mode):
            self.folders.append(entry.name)
        elif extension in EXTENSIONS:
            self.images.append((entry.name, status.st_size, status.st_mtime_ns))
        else:
            self.ignored.append(extension)

    def class_folders(self) -> list['_Listing']:
        """Lists the class folders in this one; without any, its images are the only class."""
        if self.images and not self.folders:
            self.class_name = ONLY_CLASS
            return [self]
        if self.images:
            raise InputError(
                f"'{self.folder}' has {len(self.images):,} images directly in it "
                f"('{self.images[0][0]}', say), beside folders; they belong in one folder for each "
                'class. If there are no classes, put all images into one folder.'
            )
        if not self.folders:
            raise InputError(
                f"'{self.folder}' is empty: it has no images and no class folders. Images are "
                'expected as FILE, CLASS/FILE or SPLIT/CLASS/FILE, with splits named train, val '
                'and test.'
            )
        for name in self.folders:
            if not name.isprintable() or name != name.strip():
                raise InputError(
                    f'the class folder {name!r} in {str(self.folder)!r} needs a name of printable '
                    'characters, without spaces around them.'
                )
        return [_Listing(self.folder / name) for name in self.folders]


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError:  # a broken link is an image that cannot be read
        return entry.stat(follow_symlinks=False)


def _class_folders_of_splits(top: _Listing) -> dict[str, list[_Listing]]:
    root = top.folder
    split_folders = [name for name in top.folders if name.lower() in SPLITS]
    if not split_folders or top.images:
        return {'train': top.class_folders()}
    if others := [name for name in top.folders if name not in split_folders]:
        raise InputError(
            f"'{root}' has {_names(split_folders)} beside {_names(others)}: taken as classes, the "
            "images of other splits would leak into training. Put the training images' class "
            "folders into a folder 'train' beside it, or rename it if it is a class."
        )
    by_split = {SPLITS[name.lower()]: root / name for name in split_folders}
    if 'train' not in by_split or len(by_split) < len(split_folders):
        raise InputError(
            f"'{root}' has the splits {_names(split_folders)}: it needs a folder 'train' with the "
            "training images' class folders, and at most one for each of validation and test."
        )
    order = sorted(by_split, key=list(SPLITS.values()).index)
    return {split: _Listing(by_split[split]).class_folders() for split in order}


def _files(
    root: pathlib.Path, listings: list[_Listing], classes: tuple[str, ...]
) -> tuple[ImageFile, ...]:
    """Returns the files of a split's class folders, in the order of a hash of CLASS/FILE."""
    keyed = []
    for listing in listings:
        if listing.folders:
            raise InputError(
                f"the class folder '{listing.folder}' has folders in it "
                f'({_names(listing.folders)}); images must lie directly in it. Is the folder that '
                'was given one level too high?'
            )
        name = listing.class_name
        label = classes.index(name)
        parent = listing.folder.relative_to(root)
        for file, size, modified_ns in listing.images:
            key = hashlib.sha256(os.fsencode(f'{name}/{file}')).digest()
            path = (parent / file).as_posix()
            keyed.append((key, ImageFile(path, label, size, modified_ns)))
    return tuple(image for _, image in sorted(keyed))


def _check_not_empty(root: pathlib.Path, split: str, listings: list[_Listing]) -> None:
    empty = [x.class_name for x in listings if not x.images and not x.folders]
    if empty and (split == 'train' or len(empty) == len(listings)):
        raise InputError(
            f"'{root}' has classes without an image in the {split} split: {_names(empty)}. Delete "
            f'such folders, or fill them. The name of an image ends in {", ".join(EXTENSIONS)}.'
        )


def _names(names: Iterable[str]) -> str:
    names = list(names)
    shown = ', '.join(f"'{name}'" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f'{shown} and {len(names) - _SHOWN:,} more'
