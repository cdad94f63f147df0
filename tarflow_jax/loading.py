"""Loads a trained model from a workdir, one of its checkpoints, or a published file."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from tarflow_jax.build import Experiment, make_model
from tarflow_jax.errors import InputError
from tarflow_jax.flow import TarFlow
from tarflow_jax.formats import torchfile
from tarflow_jax.keys import NON_PARAMETER_KEYS
from tarflow_jax.likelihood.noise import TypeAndStd, agree_rounded, type_and_std
from tarflow_jax.parallel import memory, rules
from tarflow_jax.parallel.distributed import is_main
from tarflow_jax.parallel.libtpu import quiet_without_tpu
from tarflow_jax.published import convert
from tarflow_jax.published.name import CheckpointName
from tarflow_jax.sharing import huggingface, pretrained
from tarflow_jax.trained_flow import TrainedFlow
from tarflow_jax.values import ImageShape, Integer, PathValue
from tarflow_jax.workdir import (
    config_of,
    existing_path,
    is_checkpoint_path,
    read_config,
    workdir_of,
)


class LoadedModel(NamedTuple):
    """What is at a path: a model, its parameters, its config, and the step of the checkpoint.

    The config has at least a section model; the step of a published file is None.
    """

    model: TarFlow
    params: Any
    config: ConfigDict
    step: int | None


def load(path, *, image_shape=None, patch_size=None) -> TrainedFlow:
    """Loads a trained model, with the parameters to sample and score with.

        flow = tarflow_jax.load('runs/digits')
        model, params = flow

    Args:
      path: a workdir (its newest checkpoint is taken), a folder `workdir/checkpoints/<step>`, a
        state dict of apple/ml-tarflow (`.pth`), or whatever `from_pretrained` takes. Where a moving
        average was kept, that is loaded.
      patch_size: needed for a state dict only, and only if its name is not one that the published
        code gives (`afhq_model_8_768_8_8_0.07.pth`), which contains it.
      image_shape: (H, W, C), likewise, and only if images are not square or have other than one
        channel or three.

    Returns:
      The model, a `TarFlow`, with its float32 parameters on the default device and its config.

    Raises:
      InputError: there is nothing to load at `path`, or it is damaged, not a TarFlow, or does not
        fit the shapes given.
    """
    if image_shape is not None:
        image_shape = ImageShape().check('image_shape', image_shape)
    if patch_size is not None:
        patch_size = Integer(1).check('patch_size', patch_size)
    if huggingface.is_name(path) and not Path(path).exists():
        path = huggingface.fetch(path)
    with quiet_without_tpu():
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    loaded = _load(
        path,
        lambda params: jax.tree.map(lambda _: device, params),
        image_shape=image_shape,
        patch_size=patch_size,
    )
    for name, given in ('image_shape', image_shape), ('patch_size', patch_size):
        if given not in (None, getattr(loaded.model, name)):
            raise InputError(f'{name} is {getattr(loaded.model, name)} in {path}; got {given}.')
    return TrainedFlow(*loaded, path=existing_path(path).absolute())


def from_pretrained(folder_or_name, *, revision: str | None = None) -> TrainedFlow:
    """Loads a model that `TrainedFlow.save_pretrained` wrote.

    Args:
      folder_or_name: a folder, or the name of a repository on the Hugging Face Hub, `owner/name`,
        which is looked for in the cache of its library first, and downloaded if it is not there.
      revision: a branch, a tag or a commit of the repository.

    Raises:
      InputError: there is no such folder or repository, its files are damaged, or it is a name and
        the library of the Hub is not installed.
    """
    if huggingface.is_name(folder_or_name) and not Path(folder_or_name).exists():
        return load(huggingface.fetch(folder_or_name, revision))
    if revision is not None:
        raise InputError(
            f'revision={revision} applies to Hub repositories only; {folder_or_name} is a local '
            'path.'
        )
    return load(folder_or_name)


def load_params(experiment: Experiment, path):
    """Loads the parameters of an experiment's model over its mesh, from what `load` takes.

    Every device reads only its own shards. No device holds all of the parameters, and neither does
    a host if they are loaded from a workdir.

    Returns:
      (params, step): the step is that of the checkpoint, None for a published file.

    Raises:
      InputError: there is nothing to load at `path`, or it is damaged, or another model.
    """
    expected = experiment.model
    loaded = _load(
        path,
        lambda params: rules.shardings(params, experiment.mesh),
        image_shape=expected.image_shape,
        patch_size=expected.patch_size,
    )
    model = loaded.model
    differences = [
        f'{key} is {getattr(model, key)} in the checkpoint, {getattr(expected, key)} in the config'
        for key in experiment.config.model
        if key not in NON_PARAMETER_KEYS and getattr(model, key) != getattr(expected, key)
    ]
    if differences:
        raise InputError(
            f'{path} holds another model: {"; ".join(differences)}. Set config.model accordingly.'
        )
    return loaded.params, loaded.step


def _load(path, shardings, *, image_shape, patch_size) -> LoadedModel:
    """What is at `path`, its parameters sharded as `shardings(params)` says."""
    path = existing_path(path)
    if path.is_dir():
        load = _load_pretrained if pretrained.is_pretrained(path) else _load_folder
        return load(path, shardings)
    model, params = convert.from_state_dict(
        torchfile.read_state_dict(path),
        image_shape=image_shape,
        patch_size=patch_size,
        name=CheckpointName.parse(path),
        source=str(path),
        shardings=shardings,
    )
    return LoadedModel(
        model, params, config_of(model, read_noise(path), read_dataset_name(path)), None
    )


def read_noise(path) -> TypeAndStd | None:
    """The noise on the images that the model at `path` learned: type and standard deviation.

    As in the noise section of a config, 0 for uniform noise. The name of a published file rounds it
    to two digits; None if it is unknown.
    """
    path = PathValue().check('path', path)
    if path.is_dir():
        config = read_config(workdir_of(path))
        if 'noise' not in config:
            return None
        return type_and_std(config.noise.type, config.noise.std)
    name = CheckpointName.parse(path)
    return None if name is None else TypeAndStd(name.noise_type, name.noise_std)


def warn_of_noise_mismatch(config, path) -> None:
    """Warns if a model learned images with other noise than a config's, or does not record it."""
    learned = read_noise(path)
    configured = type_and_std(config.noise.type, config.noise.std)
    if not is_main():
        return
    if learned is None:
        if Path(path).is_dir():  # a published file is given with a config of its own
            logging.warning(
                'The model in %s does not record the noise on the images that it learned. Scores '
                'and denoising steps use the %s noise of %g of the config. Set config.noise '
                'accordingly.',
                *(path, *configured),
            )
        return
    if not agree_rounded(learned, configured):
        logging.warning(
            'The model in %s learned images with %s noise of %g; the config has %s noise of %g. '
            'Scores and denoising steps use the noise of the config. Set config.noise accordingly.',
            *(path, *learned, *configured),
        )


def read_dataset_name(path) -> str | None:
    """The name of the data set that the model at `path` learned; None if it is unknown."""
    path = PathValue().check('path', path)
    if path.is_dir():
        config = read_config(workdir_of(path))
        return config.data.name if 'data' in config else None
    name = CheckpointName.parse(path)
    return None if name is None else name.dataset


def _load_pretrained(folder: Path, shardings) -> LoadedModel:
    config = read_config(folder)
    model = make_model(config.model)
    shapes = model.param_shapes()
    memory.check_fits({'parameters': rules.with_shardings(shapes, shardings(shapes))})
    return LoadedModel(model, pretrained.read_params(folder, model, shardings), config, None)


def _load_folder(path: Path, shardings) -> LoadedModel:
    from tarflow_jax.training.checkpoint import Checkpoints, quiet_orbax  # with Orbax: only here

    workdir = workdir_of(path)
    config = read_config(workdir)
    config.model.attention = 'auto'  # that of these devices, not of those it was trained on
    model = make_model(config.model)
    item = 'ema_params' if config.train.ema_decay else 'params'
    shapes = model.param_shapes()
    abstract = {item: rules.with_shardings(shapes, shardings(shapes))}
    memory.check_fits({'parameters': abstract})
    with contextlib.ExitStack() as stack:
        stack.callback(quiet_orbax())
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, read_only=True)))
        if is_checkpoint_path(path):
            step = int(path.name)
            return LoadedModel(model, _restore(checkpoints, path, abstract)[item], config, step)
        newest = checkpoints.restore_newest(abstract)
    if newest is None:
        raise InputError(f'{workdir} has no checkpoint yet: train there first.')
    step, items = newest
    return LoadedModel(model, items[item], config, step)


def _restore(checkpoints, path: Path, abstract):
    from tarflow_jax.training.checkpoint import DamagedCheckpoint, RemovedCheckpoint

    try:
        return checkpoints.restore(int(path.name), abstract)
    except RemovedCheckpoint as reason:
        raise InputError(f'the checkpoint {path} no longer exists: {reason}.') from reason
    except DamagedCheckpoint as reason:
        words = f'the checkpoint {path} is damaged: {reason}. Give another one of the run.'
        raise InputError(words) from reason
