"""The sections of what a run has left in its workdir."""

import io
import runpy
from pathlib import Path

import numpy as np
from PIL import Image

from tarflow_jax import configfile, pictures
from tarflow_jax.errors import InputError
from tarflow_jax.keys import flatten
from tarflow_jax.report.page import (
    Section,
    columns,
    command,
    details,
    figure,
    missing,
    paragraph,
    png_figure,
    table,
    thumbnails,
)
from tarflow_jax.sampling import calibration_file
from tarflow_jax.training.metrics_writer import read_metrics
from tarflow_jax.workdir import CONFIG_FILE, converted_from

MAX_GRIDS = 6  # of samples through training
GRID_PIXELS = 720  # to which a larger grid is scaled
_OWN_FOLDERS = ('data.dir',)  # keys that say more of a machine than of a run


def training(workdir: Path) -> Section:
    """Curves, and samples through training."""
    train = command(flags_of_run(workdir), 'train')
    if file := converted_from(workdir):
        words = f'Converted from {file}, which contains no training history.'
        return Section('Training', [paragraph(words)])
    return Section('Training', [columns(_curves(workdir, train), _samples(workdir, train))])


def flags_of_run(workdir: Path) -> list[str]:
    """The flags of a workdir that has a config of its own, to train there; none for others."""
    return [f'--workdir={workdir}'] if (workdir / CONFIG_FILE).is_file() else []


def _curves(workdir: Path, train: str) -> str:
    try:
        picture = pictures.training_curves(read_metrics(workdir))
    except InputError:
        words = 'There are no metrics: nothing was trained in this workdir, or not for long yet.'
        return missing(words, train)
    return figure(picture, 'Metrics of the training run, by step.')


def _samples(workdir: Path, train: str) -> str:
    grids = sorted(workdir.glob('samples/step_*.png'))
    if not grids:
        words = 'There are no samples from training; they are drawn every train.sample_every steps.'
        return missing(words, train)
    chosen = np.unique(np.linspace(0, len(grids) - 1, min(MAX_GRIDS, len(grids))).astype(int))
    return thumbnails(*(_grid(grids[i]) for i in chosen))


def _grid(path: Path) -> str:
    step = int(path.stem.rpartition('_')[2])
    file = io.BytesIO()
    try:
        with Image.open(path) as grid:
            grid.thumbnail((GRID_PIXELS, GRID_PIXELS), Image.Resampling.LANCZOS)
            grid.save(file, 'PNG', optimize=True)
    except OSError as error:
        return missing(f'{path} cannot be read: {error}.')
    return png_figure(file.getvalue(), f'Samples at step {step:,}.')


def sampler(workdir: Path, calibrate: str, params_sha256: str | None) -> Section:
    """The calibration, or the command that makes one.

    Args:
      workdir: the folder of the run.
      calibrate: the command that makes a calibration.
      params_sha256: the hash of the page's parameters, which tells whether the calibration is of
        others; None if they could not be loaded.
    """
    path = workdir / calibration_file.FILE
    try:
        _, reports, identity = calibration_file.read(path)
    except FileNotFoundError:
        words = 'The sampler was not calibrated: samples are drawn token by token.'
        return Section('Sampler', [missing(words, calibrate)])
    except InputError as error:
        return Section('Sampler', [missing(str(error), calibrate)])
    picture = pictures.calibration(reports, identity['tolerance'])
    windows = ', '.join(str(report.window) for report in reports)
    times = [report.times.get(report.window, 1.0) for report in reports]
    words = (
        f'Measured on {identity["device"]} for batches of {identity["batch_size"]}: windows of '
        f'{windows} tokens, from the first block to the last, take {np.mean(times):.0%} of the '
        'time of sampling token by token, in the mean over blocks.'
    )
    if params_sha256 not in (None, identity['params_sha256']):
        words += ' It was made for other parameters, and is not used for those of this page.'
    head = ('block', 'window', 'time', 'CRM', 'IGM')
    rows = [
        (
            str(block),
            str(r.window),
            f'{time:.2f}',
            f'{r.crm:.1f}',
            f'{r.igm:.1f}',
        )
        for block, (r, time) in enumerate(zip(reports, times, strict=True), start=1)
    ]
    beside = paragraph(words) + table(rows, head)
    return Section('Sampler', [columns(beside, figure(picture, 'How each block converges.'))])


def configuration(config) -> Section:
    """What the experiment changes, and every key."""
    values = {name: _value(value) for name, value in flatten(config).items()}
    base = _base()
    changed = {
        name: (value, base.get(name, '–'))
        for name, value in values.items()
        if value != base.get(name) and name not in _OWN_FOLDERS
    }
    rows = [(name, *both) for name, both in changed.items()]
    parts = [
        paragraph('Keys that differ from configs/base.py:'),
        table(rows, ('key', 'here', 'in base')),
        details('Every key', table(values.items())),
    ]
    return Section('Config', parts)


def _base() -> dict[str, str]:
    """The values of `configs/base.py`."""
    config = runpy.run_path(str(configfile.folder() / 'base.py'))['get_config']()
    return {name: _value(value) for name, value in flatten(config).items()}


def _value(value) -> str:
    return ', '.join(map(str, value)) if isinstance(value, list | tuple) else str(value) or '–'
