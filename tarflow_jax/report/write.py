"""A workdir as one page: what the model is, what it learned, what it draws, how good it is."""

import datetime
import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

import tarflow_jax
from tarflow_jax import loading
from tarflow_jax.build import Experiment
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation.evaluate import check as check_evaluation
from tarflow_jax.files import make_writable, write_atomically
from tarflow_jax.flow.tarflow import count_parameters
from tarflow_jax.parallel.fingerprints import digest
from tarflow_jax.quantities import format_bytes, format_duration, shorten
from tarflow_jax.report import gallery, run, scores
from tarflow_jax.report import model as models
from tarflow_jax.report.page import (
    Section,
    command,
    facts,
    missing,
    page,
    paragraph,
    table,
)
from tarflow_jax.training.checkpoint import newest_and_best
from tarflow_jax.workdir import CONFIG_FILE, workdir_of

FILE = 'report.html'
PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'matplotlib')


def report(
    config: ConfigDict, workdir: Path, checkpoint: str | None = None, flags: Sequence[str] = ()
) -> Path:
    """Writes `workdir/report.html` and says so.

    What is not there, such as an evaluation, is named on the page with the command that makes it.

    Args:
      config: that of the workdir.
      workdir: the folder of a run.
      checkpoint: another model than the newest of the workdir, see `tarflow_jax.load`.
      flags: those of the commands on the page; by default the workdir.

    Returns:
      The path of the page.

    Raises:
      InputError: the workdir cannot be written to, or the config is of no model.
    """
    start = time.perf_counter()
    make_writable(workdir)
    experiment = models.open_experiment(config)
    html = _page(experiment, workdir, checkpoint, flags or [f'--workdir={workdir}'])
    path = workdir / FILE
    write_atomically(path, lambda file: file.write(html.encode()))
    size = format_bytes(path.stat().st_size)
    print(f'{path}: {size}, in {format_duration(time.perf_counter() - start)}.')
    return path


def _page(
    experiment: Experiment, workdir: Path, checkpoint: str | None, flags: Sequence[str]
) -> str:
    step = params_sha256 = None
    try:
        params, step = loading.load_params(experiment, checkpoint or workdir)
        params_sha256 = digest(params)
        count = models.count_images(experiment.model)
        print(f'Drawing {count} samples for the report.', flush=True)
        samples = models.draw(experiment, params)
        of_model = [gallery.samples(samples), gallery.journey(samples, experiment.model.patch_size)]
        after = [gallery.latents(experiment, params)]
    except InputError as error:
        train = command(run.flags_of_run(workdir), 'train')
        of_model, after = [Section('Samples', [missing(str(error), train)])], []
    evaluate, why_not = command(flags, 'evaluate'), ''
    try:
        check_evaluation(experiment)
    except InputError as error:
        evaluate, why_not = '', str(error)
    sections = [
        *of_model,
        run.training(workdir),
        scores.scores(workdir, evaluate, why_not),
        *after,
        gallery.architecture(experiment),
        run.sampler(workdir, command(flags, 'calibrate'), params_sha256),
        run.configuration(experiment.config),
        _environment(),
    ]
    folder = workdir_of(Path(checkpoint)) if checkpoint else workdir
    return page(
        folder.resolve().name,
        _lead(experiment, folder),
        _facts(experiment, workdir, step, params_sha256),
        sections,
    )


def _lead(experiment: Experiment, folder: Path) -> str:
    """What the model of a folder is, in a sentence or two."""
    config, model = experiment.config, experiment.model
    height, width, channels = model.image_shape
    kind = {1: 'grey images', 3: 'colour images'}.get(channels, f'images of {channels} channels')
    classes = f' of {model.num_classes} classes' if model.num_classes else ''
    words = f'A normalizing flow between noise and {height}×{width} {kind}{classes}'
    source = f' from {config.data.name}' if config.data.name else ''
    gaussian = f'Gaussian noise of standard deviation {config.noise.std:g}'
    noise = gaussian if config.noise.type == 'gaussian' else 'uniform noise'
    is_unknown = (folder / CONFIG_FILE).is_file() and loading.read_noise(folder) is None
    assumed = ', which is assumed: the model does not record it' if is_unknown else ''
    return f'{words}, learned{source} under {noise}{assumed}.'


def _facts(
    experiment: Experiment, workdir: Path, step: int | None, params_sha256: str | None
) -> str:
    model = experiment.model
    tokens = model.token_flow().num_tokens
    values = [
        ('parameters', shorten(count_parameters(model.param_shapes()))),
        ('blocks × layers', f'{model.num_blocks} × {model.layers_per_block}'),
        ('tokens', f'{tokens:,}'),
    ]
    if step:  # not of a converted model
        values.append(('trained steps', f'{step:,}'))
    if best := newest_and_best(workdir)[1]:
        values.append(('best step', f'{best:,}'))
    return facts([*values, *scores.leading(workdir, params_sha256)])


def _environment() -> Section:
    devices = jax.devices()
    cores = f' of {os.cpu_count()} cores' if devices[0].platform == 'cpu' else ''
    rows = [
        ('made', datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')),
        ('tarflow_jax', tarflow_jax.__version__),
        *((package, importlib.metadata.version(package)) for package in PACKAGES),
        ('Python', platform.python_version()),
        ('system', f'{platform.system()} {platform.machine()}'),
        ('devices', f'{len(devices)} {devices[0].device_kind}{cores}'),
    ]
    words = 'The machine that made this page; the training run may have used another.'
    return Section('Environment', [paragraph(words), table(rows)])
