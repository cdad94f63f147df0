"""The command that prepares a data set.

    python -m tarflow_jax.data.prepare NAME --folder=DIR --size=N [--upscale]
        [--max_unreadable=PERCENT] [--data_dir=DIR] [--workers=N]
    python -m tarflow_jax.data.prepare NAME [--data_dir=DIR] [--manual_dir=DIR]

The first makes one of any folder of images, the second prepares one of ours or of TFDS's own. NAME
is what `config.data.name` is afterwards. A command that was interrupted goes on when it is given
again.
"""

import argparse
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import tensorflow_datasets as tfds
from absl import logging

from tarflow_jax.data import tfds_catalog
from tarflow_jax.data.image_folder.display import PreparationDisplay
from tarflow_jax.data.image_folder.prepare import prepare_image_folder
from tarflow_jax.data.image_folder.unreadable import FILE_NAME
from tarflow_jax.data.prepared import quiet_tfds, reading
from tarflow_jax.errors import InputError, RunError
from tarflow_jax.quantities import format_bytes, format_duration

_MOST_CLASSES_SHOWN = 10
_EXPERIMENTS = {
    'digits': 'configs/digits.py',
    'photos/64': 'configs/photos.py',
    'photos/256': 'configs/photos.py:256',
}
_SMALL = 'configs/small.py'
_SMALL_BATCH, _SMALL_SHARE = 64, 0.95  # of that config: images a step, of so many of the split
_SIDE_OF_ANY = 64  # to suggest where images come in any size


def main(arguments: Sequence[str]) -> None:
    """Prepares what the command line asks for, and tells what was made.

    Raises:
        InputError: if it cannot be done as given.
        RunError: if it cannot go on.
    """
    start = time.perf_counter()
    asked = _parse(arguments)
    if asked.folder is None:
        folder = tfds_catalog.prepare(asked.name, asked.data_dir, asked.manual_dir)
    else:
        folder = _prepare_folder(asked)
    seconds = time.perf_counter() - start
    print(describe(asked.name, folder, asked.data_dir, seconds))


def _prepare_folder(asked: argparse.Namespace) -> pathlib.Path:
    with PreparationDisplay() as display:
        return prepare_image_folder(
            asked.name,
            asked.folder,
            asked.data_dir,
            size=asked.size,
            upscale=asked.upscale,
            max_unreadable=1.0 if asked.max_unreadable is None else asked.max_unreadable,
            workers=_num_cores() if asked.workers is None else asked.workers,
            say=display.say,
            progress=display.progress,
        )


def describe(name: str, folder: pathlib.Path, data_dir: str, seconds: float) -> str:
    """What stands in a prepared folder, and the command that trains on it; a few lines."""
    with quiet_tfds(), reading(folder):
        info = tfds.builder_from_directory(folder).info
        shape = info.features['image'].shape
        label = dict(info.features.items()).get('label')
        splits = {split: info.splits[split].num_examples for split in info.splits}
    lines = [f'{name} is prepared in {folder}']
    lines += [f'  {split:10}  {count:,} images' for split, count in splits.items()]
    if label is not None:
        lines.append(f'  {"classes":10}  {label.num_classes:,}{_class_names(label)}')
    lines += [
        f'  {"images":10}  {"x".join(str(side or "any") for side in shape)}',
        f'  {"size":10}  {format_bytes(info.dataset_size)}, in {format_duration(seconds)}',
    ]
    if (folder / FILE_NAME).exists():
        lines.append(f'  {"left out":10}  the files in {folder / FILE_NAME}')
    num_classes = getattr(label, 'num_classes', 0)
    return '\n'.join(
        [*lines, 'Next:', f'  {_next_line(name, data_dir, shape, num_classes, splits)}']
    )


def _class_names(label: tfds.features.ClassLabel) -> str:
    names = label.names[: _MOST_CLASSES_SHOWN + 1]
    if len(names) > _MOST_CLASSES_SHOWN:
        names[_MOST_CLASSES_SHOWN:] = ['...']
    return f': {", ".join(names)}'


def _next_line(
    name: str, data_dir: str, shape: Sequence[int], num_classes: int, splits: dict[str, int]
) -> str:
    """The command that trains: our experiment on this data set if there is one, or a small one."""
    workdir = f'--workdir=runs/{name.replace("/", "_")}'
    if name in _EXPERIMENTS:
        words = [f'--config={_EXPERIMENTS[name]}', workdir]
    else:
        sides = 'x'.join(str(side or _SIDE_OF_ANY) for side in shape)
        words = [f'--config={_SMALL}:{sides}', workdir, f'--config.data.name={name}']
        if num_classes > 1:
            words.append(f'--config.model.num_classes={num_classes}')
        num_images = int(splits.get('train', 0) * _SMALL_SHARE)
        if num_images < _SMALL_BATCH:
            words.append(f'--config.train.batch_size={max(1, num_images // 2)}')
    if data_dir != _default_data_dir():
        words.append(f'--config.data.dir={data_dir}')
    return shlex.join(['python', '-m', 'tarflow_jax.main', *words])


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog='python -m tarflow_jax.data.prepare', description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add('name', metavar='NAME', help='what config.data.name is afterwards')
    add('--folder', metavar='DIR', help='images as CLASS/FILE or SPLIT/CLASS/FILE')
    add('--size', type=int, metavar='N', help='side of the images in pixels')
    add('--upscale', action='store_true', help='enlarge images that are smaller')
    add(
        '--max_unreadable',
        type=float,
        metavar='PERCENT',
        help='of a split that may be left out; 1 by default',
    )
    add('--workers', type=int, metavar='N', help='processes to use; all cores by default')
    add('--data_dir', metavar='DIR', default=_default_data_dir(), help='as config.data.dir')
    add('--manual_dir', metavar='DIR', help="files you downloaded for one of TFDS's data sets")
    asked = parser.parse_args(arguments)
    for flag in ('folder', 'data_dir', 'manual_dir'):
        if getattr(asked, flag) == '':
            raise InputError(f'--{flag}= is empty; give the path of a folder.')
    of_folders = ('size', 'upscale', 'max_unreadable', 'workers')
    given = [f'--{name}' for name in of_folders if getattr(asked, name) not in (None, False)]
    if asked.folder is None and given:
        raise InputError(f'{", ".join(given)} can be given with --folder only.')
    if asked.folder is not None and asked.size is None:
        raise InputError('--folder needs --size=N, the side of the images in pixels.')
    if asked.folder is not None and asked.manual_dir is not None:
        raise InputError("--manual_dir is for TFDS's data sets, not for --folder.")
    return asked


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f'{message} (--help tells what there is)')


def _default_data_dir() -> str:
    """As in configs/base.py, which is no part of the package."""
    return os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def run() -> None:
    """Runs `main` so that what a person can mend is told without a traceback."""
    logging.set_verbosity(logging.WARNING)
    try:
        main(sys.argv[1:])
        return
    except InputError as error:
        status, message = 2, str(error)
    except RunError as error:
        status, message = 1, str(error)
    except OSError as error:
        status, message = 1, f'{error}. Mend that and run the same command.'
    except KeyboardInterrupt:
        status, message = 130, 'interrupted; the same command goes on.'
    print(f'error: {message}', file=sys.stderr)
    sys.exit(status)


if __name__ == '__main__':
    run()
