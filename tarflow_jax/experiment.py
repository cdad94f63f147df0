"""From a config to the objects it names, and from a workdir to the config it was made with."""

import dataclasses
import difflib
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
from tarflow_jax.keys import KEYS, check_record, flatten
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.parallel.mesh import batch_shares
from tarflow_jax.sampling.guidance import Guidance
from tarflow_jax.values import MOST

CONFIG_FILE = 'config.json'

# Attributes of a model that do not change its parameters.
FREE_MODEL_KEYS = ('dtype', 'attention', 'remat', 'unroll')

# What makes a training what it is, besides the model: a run that resumes keeps it.
MEANING = (
    *('seed', 'data.name', 'data.train_split', 'data.test_split', 'data.random_flip'),
    *('noise.type', 'noise.std', 'optimizer.b1', 'optimizer.b2', 'optimizer.weight_decay'),
    *('train.batch_size', 'train.drop_label', 'train.ema_decay'),
)
CONVERTED_FROM = 'converted_from'  # in a config.json: the published file, and its SHA-256
MOST_BYTES = 1_000_000  # of a config.json

KERNEL_PLATFORMS = {'splash': 'tpu', 'cudnn': 'gpu'}


def make_model(config, platform: str | None = None) -> TarFlow:
    """The model of a config, with the attention of the platform: 'cpu', 'gpu' or 'tpu'.

    The platform is that of JAX's default devices if it is not given. Raises InputError for sizes
    that do not fit together, and for an attention kernel of another platform.
    """
    check_section(config, 'model')
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
    section = config.sample
    check_section(config, 'sample')
    Guidance.checked(
        section.guidance,
        section.guide,
        section.anneal_guidance,
        section.attention_temperature,
        num_classes=model.num_classes,
    )
    removes_noise = section.denoise and config.noise.type == 'gaussian'
    how = {key: value for key, value in section.items() if key != 'denoise'}
    return {**how, 'denoise_std': config.noise.std if removes_noise else 0.0}


def check_keys(config) -> None:
    """Raises InputError unless a config has every key, each with a value that it may have.

    Values that go together are checked, too, as far as nothing but the config is needed.
    """
    flat = flatten(config)
    for name in flat:
        if name not in KEYS:
            raise InputError(
                f"there is no config key '{name}'{_hint(name)} Every key stands in configs/base.py."
            )
    for name, kind in KEYS.items():
        if name not in flat:
            raise InputError(
                f'the config has no {name}. Let get_config() begin with base.get_config(), of '
                'configs/base.py, which has every key.'
            )
        kind.check(name, flat[name])
    peak, final = (flat[f'optimizer.{end}_learning_rate'] for end in ('peak', 'final'))
    if final > peak:
        raise InputError(
            f'optimizer.final_learning_rate {final} is above optimizer.peak_learning_rate {peak}, '
            'to which the rate rises before it falls: lower the one or raise the other.'
        )
    Noise(flat['noise.type'], flat['noise.std'], num_levels=256)  # refuses a std of no noise


def check_section(config, section: str) -> None:
    """Raises InputError unless the values of a section are those that its keys may have."""
    for name, kind in KEYS.items():
        if name.startswith(f'{section}.'):
            kind.check(name, config[section][name.partition('.')[2]])


def _hint(name: str) -> str:
    nearest = difflib.get_close_matches(name, KEYS, n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else '.'


def count_steps(config, num_images: int) -> int:
    """How many steps a training on `num_images` takes; raises InputError if they are too many."""
    steps = config.train.num_epochs * num_images / config.train.batch_size
    if steps > MOST:
        raise InputError(
            f'train.num_epochs {config.train.num_epochs:g} would be {steps:.3g} steps; choose at '
            f'most {MOST * config.train.batch_size / num_images:.3g}.'
        )
    return math.ceil(steps)


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
    """The config that made a workdir, with `FREE_MODEL_KEYS` that it lacks at their defaults.

    Raises:
      InputError: the folder has none, or a damaged one.
    """
    path = Path(workdir, CONFIG_FILE)
    if not path.is_file():
        raise InputError(
            f'{workdir} is not a workdir of a training run: it has no {CONFIG_FILE}. Train one '
            'there first, or give the --workdir (or --checkpoint) of another.'
        )
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f'it has more than {MOST_BYTES} bytes')
        record = json.loads(path.read_text(encoding='utf-8'), parse_constant=_refuse_constant)
        check_record(record)
    except RecursionError:
        raise InputError(f'{path} is damaged: it is nested too deeply.') from None
    except ValueError as error:
        raise InputError(f'{path} is damaged: {str(error).rstrip(".")}.') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}.') from error
    defaults = {f.name: f.default for f in dataclasses.fields(TarFlow)}
    record['model'] = {key: defaults[key] for key in FREE_MODEL_KEYS} | record['model']
    sections = {*(name.partition('.')[0] for name in KEYS), CONVERTED_FROM}
    return ConfigDict({key: value for key, value in record.items() if key in sections})


def _refuse_constant(name: str):
    raise InputError(f'{name} is no value of JSON')


def check_same_model(config, workdir) -> None:
    """Raises InputError, naming the keys, unless `workdir` was made with the model of `config`."""
    made_with = read_config(workdir)
    if CONVERTED_FROM in made_with:
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
    differences += differences_in(config, made_with, ('optimizer.first_moment_dtype',))
    if differences:
        raise InputError(
            f'{workdir} holds another model: {"; ".join(differences)}. Give another --workdir, or '
            'the config it was made with.'
        )


def check_same_run(config, workdir) -> None:
    """Raises InputError, naming the keys, unless `workdir` was trained by what `config` says.

    Free is what a run may well change on its way: its length, learning rates and clipping, how
    often it reports and saves, and the machine it runs on.
    """
    made_with = read_config(workdir)
    compared = [name for name in MEANING if name != 'noise.std' or config.noise.type == 'gaussian']
    if differences := differences_in(config, made_with, compared):
        raise InputError(
            f'{workdir} was trained with other settings: {"; ".join(differences)}. Give another '
            '--workdir, or the settings that it was trained with, or add --allow_changes to go on '
            'from its checkpoint with the new ones.'
        )


def differences_in(config, made_with, names) -> list[str]:
    """What differs among the named keys, as far as the older config has them."""
    before, now = (flatten(c) for c in (made_with, config))
    return [
        f'{name} is {_plain(before[name])} there, {_plain(now[name])} in the config'
        for name in names
        if name in before and _plain(before[name]) != _plain(now[name])
    ]


def record_config(config, workdir) -> None:
    """Writes the config into the workdir, and says what changed since the last run there."""
    path = Path(workdir, CONFIG_FILE)
    if path.exists():
        before, now = (flatten(c) for c in (read_config(workdir), config))
        for name in sorted(now):
            if name in before and _plain(before[name]) != _plain(now[name]):
                logging.warning('%s was %s, is %s now.', name, before[name], now[name])
    write_json(path, config.to_dict())


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
