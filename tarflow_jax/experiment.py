"""From a config to the objects it names, and from a workdir to the config it was made with."""

import json
import math
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from tarflow_jax.data.sources import Dataset, open_dataset
from tarflow_jax.errors import InputError
from tarflow_jax.files import write_json
from tarflow_jax.flow import TarFlow, patches
from tarflow_jax.flow.attention import SPLASH_BLOCKS
from tarflow_jax.parallel.mesh import batch_shares
from tarflow_jax.sampling.generate import LABELS
from tarflow_jax.sampling.guidance import Guidance
from tarflow_jax.training.objective import Noise
from tarflow_jax.training.state import GATHER

CONFIG_FILE = 'config.json'

# Attributes of a model that do not change its parameters.
FREE_MODEL_KEYS = ('dtype', 'attention', 'remat', 'unroll')

KERNEL_PLATFORMS = {'splash': 'tpu', 'cudnn': 'gpu'}


def make_model(config, platform: str | None = None) -> TarFlow:
    """The model of a config, with the attention of the platform: 'cpu', 'gpu' or 'tpu'.

    The platform is that of JAX's default devices if it is not given. Raises InputError for sizes
    that do not fit together, and for an attention kernel of another platform.
    """
    shape = tuple(config.model.image_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(
            'model.image_shape must be three positive numbers, height, width and channels (8,8,1); '
            f'got {shape}.'
        )
    classes = config.model.num_classes
    if classes < 0:
        raise InputError(f'model.num_classes must be at least 0 (for none); got {classes}.')
    attention = _choose_attention(config.model, platform or jax.default_backend())
    keys: dict[str, Any] = {**config.model, 'attention': attention}
    return TarFlow(**keys)


def _choose_attention(keys, platform: str) -> str:
    if keys.attention == 'auto':
        rows, columns = patches.grid_shape(tuple(keys.image_shape), keys.patch_size)
        divides = rows * columns % SPLASH_BLOCKS[-1] == 0
        is_for_splash = platform == 'tpu' and keys.dtype == 'bfloat16' and divides
        return 'splash' if is_for_splash else 'xla'
    needed = KERNEL_PLATFORMS.get(keys.attention, platform)
    if needed != platform:
        raise InputError(
            f'model.attention={keys.attention} runs on a {needed}; the devices here are '
            f'{platform}. Set model.attention to auto or xla.'
        )
    return keys.attention


def open_data(config, model: TarFlow) -> Dataset:
    """The data set of a config.

    Raises:
      InputError: it is unknown, or its images or labels are not those of the model.
    """
    size = model.image_shape[0] if model.image_shape[0] == model.image_shape[1] else None
    dataset = open_dataset(config.data.name, config.data.dir, image_size=size)
    if dataset.image_shape != model.image_shape:
        raise InputError(
            f'the images of {dataset.name} have the shape {dataset.image_shape}, the model is for '
            f'{model.image_shape}: set config.model.image_shape.'
        )
    if model.num_classes and not dataset.num_classes:
        raise InputError(
            f'{dataset.name} has no labels, and the model is for {model.num_classes} classes: set '
            'config.model.num_classes=0.'
        )
    if model.num_classes and dataset.num_classes > model.num_classes:
        raise InputError(
            f'{dataset.name} has {dataset.num_classes} classes, the model only '
            f'{model.num_classes}: set config.model.num_classes (0 for no conditioning).'
        )
    return dataset


def what_to_load(workdir: Path, checkpoint: str | None) -> str | Path:
    """The checkpoint, or the workdir for its newest one; raises InputError if that is not there."""
    if not checkpoint and not workdir.is_dir():
        raise InputError(f'workdir {workdir} does not exist: train there first.')
    return checkpoint or workdir


def make_noise(config, dataset: Dataset) -> Noise:
    """The noise that makes pixels of the levels of a data set."""
    return Noise(config.noise.type, config.noise.std, dataset.num_levels)


def has_ema(config) -> bool:
    """Whether a moving average of the parameters is kept."""
    return config.train.ema_decay > 0


def how_to_sample(config, model: TarFlow) -> dict:
    """Arguments of `generate` and `draw` from a config.

    Raises:
      InputError: the model cannot be sampled like that.
    """
    keys = config.sample
    check_at_least_one(config, 'sample', 'num_samples', 'batch_size')
    if not keys.prior_temperature >= 0:
        raise InputError(
            f'sample.prior_temperature must be at least 0; got {keys.prior_temperature}.'
        )
    Guidance.checked(
        keys.guidance,
        keys.guide,
        keys.anneal_guidance,
        keys.attention_temperature,
        num_classes=model.num_classes,
    )
    if keys.labels not in LABELS:
        raise InputError(f'sample.labels must be one of {", ".join(LABELS)}; got {keys.labels!r}.')
    removes_noise = keys.denoise and config.noise.type == 'gaussian'
    how = {key: value for key, value in keys.items() if key != 'denoise'}
    return {**how, 'denoise_std': config.noise.std if removes_noise else 0.0}


def check_at_least_one(config, section: str, *keys: str) -> None:
    """Raises InputError for a count that is none."""
    for key in keys:
        if config[section][key] < 1:
            raise InputError(f'{section}.{key} must be at least 1; got {config[section][key]}.')


def check_seeds(config) -> None:
    """Raises InputError for a seed that is no 31-bit number."""
    holders = {'': config, 'sample.': config.sample, 'evaluate.': config.evaluate}
    for section, keys in holders.items():
        if not 0 <= keys.seed < 2**31:
            raise InputError(f'{section}seed must lie in 0..{2**31 - 1}; got {keys.seed}.')


def check_keys(config) -> None:
    """Raises InputError for values under which a run makes no sense."""
    train, optimizer = config.train, config.optimizer
    check_at_least_one(
        config, 'train', 'batch_size', 'microbatches', 'log_every', 'evaluate_every',
        'sample_every', 'checkpoint_every', 'evaluate_draws', 'keep_checkpoints',
        'max_skipped_in_a_row',
    )  # fmt: skip
    check_at_least_one(config, 'evaluate', 'batch_size')
    if config.data.workers < 0:
        raise InputError(f'data.workers must be at least 0; got {config.data.workers}.')
    if train.gather not in GATHER:
        raise InputError(f'train.gather must be one of {", ".join(GATHER)}; got {train.gather!r}.')
    if not 0 < train.num_epochs < math.inf:
        raise InputError(f'train.num_epochs must be a number above 0; got {train.num_epochs}.')
    for key in ('drop_label', 'ema_decay'):
        if not 0 <= train[key] < 1:
            raise InputError(f'train.{key} must lie in [0, 1); got {train[key]}.')
    for key in ('b1', 'b2'):
        if not 0 <= optimizer[key] < 1:
            raise InputError(f'optimizer.{key} must lie in [0, 1); got {optimizer[key]}.')
    for key in ('peak_learning_rate', 'final_learning_rate', 'weight_decay', 'clip_norm'):
        if not optimizer[key] >= 0:
            raise InputError(f'optimizer.{key} must be at least 0; got {optimizer[key]}.')


def check_batch_size(batch_size: int, microbatches: int, num_images: int, mesh) -> None:
    """Raises InputError unless the split fills a batch and the devices share each part evenly."""
    if batch_size > num_images:
        raise InputError(
            f'train.batch_size {batch_size} is larger than the training split of {num_images} '
            f'images; choose at most {num_images}.'
        )
    check_shares(batch_size, microbatches, mesh)


def check_shares(batch_size: int, microbatches: int, mesh) -> None:
    """Raises InputError unless the devices share every part of a batch evenly."""
    shares = batch_shares(mesh)
    if batch_size % (shares * microbatches):
        parts = f', in {microbatches} parts (train.microbatches)' if microbatches > 1 else ''
        raise InputError(
            f'train.batch_size {batch_size} cannot be shared evenly by the {shares} devices of '
            f'mesh.data and mesh.fsdp{parts}; choose a multiple of {shares * microbatches}.'
        )


def read_config(workdir) -> ConfigDict:
    """The config that made a workdir.

    Raises:
      InputError: the folder has none, or a damaged one.
    """
    path = Path(workdir, CONFIG_FILE)
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f'{workdir} is not a workdir of a training run: it has no {CONFIG_FILE}. Train one '
            'there first, or give the --workdir (or --checkpoint) of another.'
        ) from None
    except ValueError as error:
        raise InputError(f'{path} is damaged: {error}.') from error
    for section, key in ('model', 'image_shape'), ('train', 'ema_decay'):
        if not isinstance(config, dict) or key not in config.get(section, ()):
            raise InputError(f'{path} is damaged: it has no {section}.{key}.')
    return ConfigDict(config)


def check_same_model(config, workdir) -> None:
    """Raises InputError, naming the keys, unless `workdir` was made with the model of `config`."""
    made_with = read_config(workdir)
    if 'converted_from' in made_with:
        raise InputError(
            f'{workdir} was converted from a published checkpoint, which has no optimizer state to '
            f'go on with. Train in another --workdir with --checkpoint={workdir}.'
        )
    kept = {key: value for key, value in config.model.items() if key not in FREE_MODEL_KEYS}
    differences = [
        f'model.{key} is {_plain(made_with.model.get(key))} there, {_plain(value)} in the config'
        for key, value in kept.items()
        if _plain(made_with.model.get(key)) != _plain(value)
    ]
    if has_ema(made_with) != has_ema(config):
        differences.append(
            f'train.ema_decay is {made_with.train.ema_decay} there, {config.train.ema_decay} in '
            'the config'
        )
    moments = [c.optimizer.first_moment_dtype for c in (made_with, config)]
    if moments[0] != moments[1]:
        differences.append(
            f'optimizer.first_moment_dtype is {moments[0]} there, {moments[1]} in the config'
        )
    if differences:
        raise InputError(
            f'{workdir} holds another model: {"; ".join(differences)}. Give another --workdir, or '
            'the config it was made with.'
        )


def record_config(config, workdir) -> None:
    """Writes the config into the workdir, and says what changed since the last run there."""
    path = Path(workdir, CONFIG_FILE)
    if path.exists():
        before, now = (_flat(c) for c in (read_config(workdir), config))
        for key in sorted(now):
            if before.get(key) != now[key]:
                logging.warning('%s was %s, is %s now.', key, before.get(key), now[key])
    write_json(path, config.to_dict())


def _flat(config) -> dict:
    return {
        f'{section}.{key}': _plain(value)
        for section, values in config.items()
        if hasattr(values, 'items')
        for key, value in values.items()
    } | {'seed': config.seed}


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
