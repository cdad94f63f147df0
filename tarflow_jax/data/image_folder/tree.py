"""Class-folder trees of image files: which images, splits and classes a folder holds."""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Collection, Iterator
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
DEFAULT_CLASS = 'images'  # of a folder without class folders
_LAYOUT = (
    'Images are expected as FILE, CLASS/FILE or SPLIT/CLASS/FILE, with splits named train, val and '
    'test.'
)
_MAX_DEPTH = 3
_MAX_NAMES = 5

_Parts = tuple[str, ...]


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
        ignored: how many files do not have the extension of an image, by extension.
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

    Files and folders whose names begin with a dot are ignored.

    Raises:
        InputError: the folder does not exist, cannot be read, or is no such tree.
    """
    if not os.fspath(folder):
        raise InputError('the folder of images has an empty name; give --folder=DIR.')
    root = pathlib.Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise InputError(f"there is no folder '{root}'; give one with a folder for each class.")
    try:
        paths = list(_files(root))
        images = [path for path in paths if _extension(path) in EXTENSIONS]
        ignored = collections.Counter(map(_extension, set(paths) - set(images)))
        by_split = _by_split(root, images)
        classes = tuple(sorted(by_split['train']))
        splits = {split: _ordered(root, by_split[split], classes) for split in by_split}
    except OSError as error:
        raise InputError(f"the folder '{root}' cannot be read ({error}).") from error
    return ImageTree(root, classes, splits, dict(sorted(ignored.items())))


def _extension(path: _Parts) -> str:
    return os.path.splitext(path[-1])[1].lower()


def _files(folder: pathlib.Path, above: _Parts = ()) -> Iterator[_Parts]:
    """Yields the path of every file, as the names of its folders below the root and its own."""
    for name in sorted(name for name in os.listdir(folder) if not name.startswith('.')):
        if not (folder / name).is_dir():  # a broken link is an image that cannot be read
            yield (*above, name)
        elif len(above) + 1 < _MAX_DEPTH:
            yield from _files(folder / name, (*above, name))
        else:
            raise _misplaced(folder.joinpath(name))


def _by_split(root: pathlib.Path, images: list[_Parts]) -> dict[str, dict[str, list[_Parts]]]:
    """Returns the images of every split and class."""
    if not images:
        raise InputError(
            f"'{root}' has no images, whose names end in {', '.join(EXTENSIONS)}. {_LAYOUT}"
        )
    has_splits = _has_splits(root, sorted({path[0] for path in images if len(path) > 1}))
    by_split = {split: collections.defaultdict(list) for split in SPLITS.values()}
    for path in images:
        *folders, _ = path
        split = SPLITS[folders.pop(0).lower()] if has_splits and folders else 'train'
        if len(folders) > 1 or (has_splits and len(path) == 1):
            raise _misplaced(root.joinpath(*path))
        by_split[split][folders[0] if folders else DEFAULT_CLASS].append(path)
    for split, by_class in by_split.items():
        lengths = {len(path): path for paths in by_class.values() for path in paths}
        if len(lengths) > 1:
            raise _misplaced(root.joinpath(*lengths[min(lengths)]))
        _check_classes(root, split, by_class, by_split['train'])
    return {split: by_class for split, by_class in by_split.items() if by_class}


def _has_splits(root: pathlib.Path, folders: list[str]) -> bool:
    split_folders = [name for name in folders if name.lower() in SPLITS]
    others = [name for name in folders if name not in split_folders]
    if split_folders and others:
        raise InputError(
            f"'{root}' has {_names(split_folders)} beside {_names(others)}. If all of them were "
            "classes, images of other splits would leak into training. Put the training images' "
            "class folders into a folder 'train' beside it, or rename it if it is a class."
        )
    splits = {SPLITS[name.lower()] for name in split_folders}
    if split_folders and ('train' not in splits or len(splits) < len(split_folders)):
        raise InputError(
            f"'{root}' has the splits {_names(split_folders)}: it needs a folder 'train' with the "
            "training images' class folders, and at most one for each of validation and test."
        )
    return bool(split_folders)


def _check_classes(
    root: pathlib.Path, split: str, classes: Collection[str], known: Collection[str]
) -> None:
    if unknown := [name for name in classes if name not in known]:
        raise InputError(
            f"the {split} split of '{root}' has classes that the training split lacks: "
            f'{_names(unknown)}. Every class must have training images.'
        )
    for name in classes:
        if not name.isprintable() or name != name.strip():
            raise InputError(
                f'the class folder {name!r} in {str(root)!r} needs a name of printable '
                'characters, without spaces around them.'
            )


def _misplaced(path: pathlib.Path) -> InputError:
    return InputError(
        f"'{path}' is not where an image belongs. {_LAYOUT} Without classes, put all images into "
        'one folder. Is the given folder one level too high?'
    )


def _ordered(
    root: pathlib.Path, by_class: dict[str, list[_Parts]], classes: tuple[str, ...]
) -> tuple[ImageFile, ...]:
    """Returns the files of a split, in the order of a hash of CLASS/FILE."""
    keyed = []
    for label, name in enumerate(classes):
        for path in by_class.get(name, []):
            key = hashlib.sha256(os.fsencode(f'{name}/{path[-1]}')).digest()
            file = root.joinpath(*path)
            status = file.stat() if file.exists() else file.lstat()  # of a broken link
            image = ImageFile('/'.join(path), label, status.st_size, status.st_mtime_ns)
            keyed.append((key, image))
    return tuple(image for _, image in sorted(keyed))


def _names(names: list[str]) -> str:
    shown = ', '.join(f"'{name}'" for name in names[:_MAX_NAMES])
    return shown if len(names) <= _MAX_NAMES else f'{shown} and {len(names) - _MAX_NAMES:,} more'
