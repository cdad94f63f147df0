"""Converts published checkpoints to workdirs, and trained models to published checkpoints."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from tarflow_jax import loading
from tarflow_jax.errors import InputError
from tarflow_jax.files import make_writable, sha256_of, write_json
from tarflow_jax.formats import torchfile
from tarflow_jax.keys import CONVERTED_FROM
from tarflow_jax.likelihood.noise import Noise, agree_rounded, type_and_std
from tarflow_jax.published import convert
from tarflow_jax.published.name import CheckpointName
from tarflow_jax.training.checkpoint import Checkpoints
from tarflow_jax.workdir import CONFIG_FILE, config_of, workdir_lock


def convert_to_workdir(
    source,
    workdir,
    *,
    image_shape=None,
    patch_size=None,
    dataset: str | None = None,
    noise: tuple[str, float] | None = None,
) -> Path:
    """Converts a published checkpoint into a new workdir, to load, sample, score or train from.

    The workdir holds the parameters as the checkpoint of step 0, and a `config.json` with the
    model, the noise, the data set's name, and the checkpoint's name and SHA-256. It appears
    complete or not at all.

    Args:
      source: the path of the `.pth`.
      workdir: a folder that does not exist, or is empty.
      image_shape: see `tarflow_jax.load`.
      patch_size: see `tarflow_jax.load`.
      dataset: the name of the training data set, if the file's name lacks it or another is wanted.
      noise: type and standard deviation of the noise in training, as in the noise section of a
        config, if the file's name lacks or rounds them.

    Returns:
      The workdir.

    Raises:
      InputError: the file cannot be read, the noise is unknown or contradicted, or the workdir
        is not empty.
      RunError: the disk is full, say.
    """
    source, workdir = Path(source).expanduser(), Path(workdir).expanduser()
    if source.is_dir():
        raise InputError(f'{source} is a folder; give a published .pth file.')
    _check_empty(workdir)
    noise = _choose_noise(source, noise)
    model, params = loading.load(source, image_shape=image_shape, patch_size=patch_size)
    config = {
        **config_of(model, noise, dataset or loading.read_dataset_name(source) or '').to_dict(),
        CONVERTED_FROM: {'file': source.name, 'sha256': sha256_of(source)},
    }
    with _new_workdir(workdir) as unfinished:
        with contextlib.closing(Checkpoints(unfinished)) as checkpoints:
            checkpoints.save(0, {'params': params})
            checkpoints.wait()
        write_json(unfinished / CONFIG_FILE, config)
    return workdir


def convert_to_published(
    source,
    folder,
    *,
    dataset: str | None = None,
    noise: tuple[str, float] | None = None,
) -> Path:
    """Writes a trained model to `folder` as the published code stores and names it.

    The name looks like `afhq_model_8_768_8_8_0.07.pth`; `torch.load` reads the file, and the
    published model takes what is in it with a strict `load_state_dict`. Where a moving average of
    the parameters was kept, that is written. The file appears complete or not at all.

    Args:
      source: whatever `tarflow_jax.load` reads without further arguments.
      folder: the folder for the file, made if it is missing.
      dataset: the data set in its name, if not that of our config.
      noise: type and standard deviation of the noise, if the source does not say.

    Returns:
      The path of the file.

    Raises:
      InputError: there is nothing to load, the published code has no such model, or there is a
        file of this name.
    """
    source = Path(source).expanduser()
    noise = _choose_noise(source, noise)
    dataset = dataset or loading.read_dataset_name(source)
    if not dataset:
        raise InputError(
            f'{source} does not record its data set, which the file name must contain: pass '
            'dataset=NAME, or the --config of its model.'
        )
    model, params = loading.load(source)
    name = CheckpointName.of(model, dataset, *noise)
    path = Path(folder).expanduser() / str(name)
    if path.exists():
        raise InputError(f'{path} already exists. Give another folder, or move it away.')
    tensors = convert.to_state_dict(model, params)
    make_writable(path.parent, 'another folder')
    if noise != loading.read_noise(path):
        logging.warning('The noise of %g is rounded in the name %s.', noise[1], path.name)
    torchfile.write_state_dict(path, tensors)
    return path


def _choose_noise(source: Path, given: tuple[str, float] | None) -> tuple[str, float]:
    """Returns type and standard deviation, given or of the source, which must agree."""
    if not source.exists():
        raise InputError(f'{source} does not exist.')
    recorded = loading.read_noise(source)
    noise = given or recorded
    if noise is None:
        if source.is_file():
            torchfile.read_state_dict(source)  # raises if it is not a checkpoint at all
        raise InputError(
            f"{source} does not record its training noise: pass it as noise=('gaussian', 0.05) or "
            "('uniform', 0), or by the --config of its model."
        )
    noise = type_and_std(*noise)
    Noise(*noise, num_levels=256)  # checks type and std
    if recorded is not None and not agree_rounded(noise, recorded):
        raise InputError(f'{source} has the noise {tuple(recorded)}; got {given}.')
    return noise


def _check_empty(workdir: Path):
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise InputError(
            f'{workdir} is not empty: a checkpoint is converted into a new workdir. Give another, '
            'or move that away.'
        )


@contextlib.contextmanager
def _new_workdir(workdir: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `workdir`, which is renamed to `workdir` at the end."""
    workdir = workdir.absolute()
    unfinished = workdir.with_name(f'.{workdir.name}.unfinished')
    with workdir_lock(unfinished):
        try:
            _clear(unfinished)  # what a conversion left that was killed
            yield unfinished
            _check_empty(workdir)
            os.rename(unfinished, workdir)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


def _clear(folder: Path):
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != '.lock':
            path.unlink()
