"""The command that prepares a data set.

    python -m tarflow_jax.data.prepare NAME --folder=DIR --size=N [--upscale]
        [--data_dir=DIR] [--workers=N]
    python -m tarflow_jax.data.prepare NAME [--data_dir=DIR] [--manual_dir=DIR]

The first command prepares a folder of images, the second a data set of this package or of TFDS.
NAME becomes `config.data.name`. A command that was interrupted resumes when it is given again.
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import tensorflow_datasets as tfds

from tarflow_jax.commands import command
from tarflow_jax.data import catalog
from tarflow_jax.data.folder import explain_read_errors, quiet_tfds
from tarflow_jax.data.image_folder.preparation import UNREADABLE_FILE, prepare_image_folder
from tarflow_jax.errors import InputError
from tarflow_jax.quantities import format_bytes, format_duration
from tarflow_jax.terminal import explain, plain_warnings

_EXPERIMENTS = {
    'digits': 'digits',
    'photos/64': 'photos',
    'photos/256': 'photos:256',
}
_IMAGES = 'images'
_EXPECTATION = (
    'Next, for colours and rough shapes after ten minutes on two CPU cores, or less for few '
    'images; a larger model is {name},minutes=60 or, on a GPU, {name},hours=8:'
)


def main(arguments: Sequence[str]) -> None:
    """Prepares a data set according to the command line, and describes it.

    Raises:
        InputError: it cannot be done as given.
        RunError: it cannot be continued.
    """
    start = time.perf_counter()
    options = _parse(arguments)
    if options.folder is None:
        folder = catalog.prepare(options.name, options.data_dir, options.manual_dir)
    else:
        folder = prepare_image_folder(
            options.name,
            options.folder,
            options.data_dir,
            size=options.size,
            upscale=options.upscale,
            workers=options.workers,
        )
    seconds = time.perf_counter() - start
    print(describe(options.name, folder, options.data_dir, seconds))


def describe(name: str, folder: pathlib.Path, data_dir: str, seconds: float) -> str:
    """Returns a few lines on a prepared folder, and the command that trains on it."""
    with quiet_tfds(), explain_read_errors(folder):
        info = tfds.builder_from_directory(folder).info
        shape = info.features['image'].shape
        label = dict(info.features.items()).get('label')
        splits = {split: info.splits[split].num_examples for split in info.splits}
    facts = {split: f'{count:,} images' for split, count in splits.items()}
    if label is not None:
        facts['classes'] = f'{label.num_classes:,}'
    facts['images'] = 'x'.join(str(side or 'any') for side in shape)
    facts['size'] = f'{format_bytes(info.dataset_size)}, in {format_duration(seconds)}'
    if (folder / UNREADABLE_FILE).exists():
        facts['left out'] = f'the files in {folder / UNREADABLE_FILE}'
    lines = [f'  {fact:10}  {value}' for fact, value in facts.items()]
    return '\n'.join([f'{name} is prepared in {folder}', *lines, *_next(name, data_dir)])


def _next(name: str, data_dir: str) -> list[str]:
    """Returns what to expect of our experiment on this data set, and the command that trains it."""
    is_default = data_dir == _default_data_dir()
    options = [f'--workdir=runs/{name.replace("/", "_")}']
    if name in _EXPERIMENTS:
        experiment, expectation = _EXPERIMENTS[name], 'Next:'
        options += [] if is_default else [f'--config.data.dir={data_dir}']
    else:
        experiment, expectation = f'{_IMAGES}:{name}', _EXPECTATION.format(name=name)
        experiment += '' if is_default else f',dir={data_dir}'
    return [expectation, f'  {command(f"--config={experiment}", *options)}']


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog='python -m tarflow_jax.data.prepare', description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add('name', metavar='NAME', help='config.data.name afterwards')
    add('--folder', metavar='DIR', help='images as FILE, CLASS/FILE or SPLIT/CLASS/FILE')
    add('--size', type=_whole_number, metavar='N', help='side of the images in pixels')
    add('--upscale', action='store_true', help='enlarge smaller images')
    num_cores = len(os.sched_getaffinity(0))
    add(
        '--workers',
        type=_whole_number,
        default=num_cores,
        metavar='N',
        help='processes; by default one per core',
    )
    add('--data_dir', metavar='DIR', default=_default_data_dir(), help='as config.data.dir')
    add('--manual_dir', metavar='DIR', help="files you downloaded for one of TFDS's data sets")
    options = parser.parse_args(arguments)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    if options.folder is None and (options.size is not None or options.upscale):
        raise InputError('--size and --upscale can be given with --folder only.')
    if options.folder is not None and options.size is None:
        raise InputError('--folder needs --size=N, the side of the images in pixels.')
    if options.folder is not None and options.manual_dir is not None:
        raise InputError("--manual_dir is for TFDS's data sets, not for --folder.")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be a whole number; got {text!r}') from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f'{message} (--help lists all arguments)')


def _default_data_dir() -> str:
    """The default of `data.dir` in configs/base.py."""
    return os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'


def run() -> None:
    """Runs `main`, with errors that a person can correct printed without a traceback."""
    plain_warnings()
    try:
        main(sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        status, message, stack = explain(error)
        print(f'{stack}error: {message}', file=sys.stderr)
        sys.exit(status)


if __name__ == '__main__':
    run()
