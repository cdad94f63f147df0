"""Every key of a config with the values that it may have.

One table for the config of a command line and for the `config.json` of a workdir.
"""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from tarflow_jax.errors import InputError, did_you_mean
from tarflow_jax.flow.attention import IMPLEMENTATIONS
from tarflow_jax.flow.tarflow import ATTRIBUTES
from tarflow_jax.likelihood.noise import NOISE_TYPES, Noise
from tarflow_jax.sampling.denoise import NOISE_STD
from tarflow_jax.sampling.guidance import ATTENTION_TEMPERATURE, GUIDE, WEIGHT
from tarflow_jax.sampling.labels import LABELS, Labels
from tarflow_jax.sampling.sample import METHOD, PRIOR_TEMPERATURE, TOLERANCE
from tarflow_jax.values import (
    INT32_MAX,
    Boolean,
    Choice,
    Float,
    Integer,
    PathValue,
    String,
    Strings,
)

SEED = Integer(0, INT32_MAX, f'must lie in 0..{INT32_MAX}')
FRACTION = Float(0, 1, exclude_high=True)
COUNT = Integer(1)
BATCH = Integer(1, 2**20)
SAMPLES = Integer(1, 10**9)
RATE = Float(0, 1e30)  # far more than makes sense, far less than float32 holds
DEVICES = Integer(-1, 2**20)

# Attributes of a model that do not change its parameters.
NON_PARAMETER_KEYS = ('dtype', 'attention', 'remat', 'unroll')

KEYS = {
    'seed': SEED,
    **{f'model.{name}': kind for name, kind in ATTRIBUTES.items()},
    'model.attention': Choice((*IMPLEMENTATIONS, 'auto')),
    'data.name': String(),
    'data.dir': PathValue(),
    'data.train_split': String(),
    'data.test_split': String(),
    'data.num_images': Integer(0, 10**12),
    'data.workers': Integer(0, 1024),
    'data.random_flip': Boolean(),
    'noise.type': Choice(NOISE_TYPES),
    'noise.std': NOISE_STD,
    'optimizer.peak_learning_rate': RATE,
    'optimizer.final_learning_rate': RATE,
    'optimizer.warmup_steps': Integer(0),
    'optimizer.b1': FRACTION,
    'optimizer.b2': FRACTION,
    'optimizer.weight_decay': Float(0, 1000),
    'optimizer.clip_norm': RATE,
    'optimizer.first_moment_dtype': Choice(('float32', 'bfloat16')),
    'train.num_epochs': Float(0, 1e9, exclude_low=True),
    'train.batch_size': COUNT,
    'train.microbatches': Integer(0),
    'train.gather': Choice(('layer', 'step')),
    'train.drop_label': FRACTION,
    'train.ema_decay': FRACTION,
    'train.log_every': COUNT,
    'train.profile_steps': Integer(0, 1000),
    'train.evaluate_every': COUNT,
    'train.evaluate_draws': COUNT,
    'train.sample_every': COUNT,
    'train.checkpoint_every': COUNT,
    'train.keep_checkpoints': COUNT,
    'train.max_restarts': Integer(0, 1000),
    'train.restart_factor': Float(0, 1, exclude_low=True),
    'mesh.data': DEVICES,
    'mesh.fsdp': DEVICES,
    'mesh.tensor': DEVICES,
    'sample.num_samples': SAMPLES,
    'sample.labels': Labels(),
    'sample.batch_size': BATCH,
    'sample.guidance': WEIGHT,
    'sample.guide': GUIDE,
    'sample.anneal_guidance': Boolean(),
    'sample.attention_temperature': ATTENTION_TEMPERATURE,
    'sample.prior_temperature': PRIOR_TEMPERATURE,
    'sample.denoise': Boolean(),
    'sample.method': METHOD,
    'sample.tolerance': TOLERANCE,
    'sample.certify': Boolean(),
    'sample.seed': SEED,
    'evaluate.metrics': Strings(),
    'evaluate.splits': Strings(),
    'evaluate.batch_size': BATCH,
    'evaluate.num_draws': COUNT,
    'evaluate.seed': SEED,
    'evaluate.num_samples': SAMPLES,
    'evaluate.labels': Choice(LABELS),
    'evaluate.quantization': String(),
    'evaluate.samples': String(),
    'evaluate.save_samples': Boolean(),
    'evaluate.preprocessing': String(),
    'evaluate.inception_weights': String(),
    'evaluate.reference': String(),
    'evaluate.reference_flip': Boolean(),
}


def check(config) -> None:
    """Raises InputError unless a config has every key, each with a value that it may have.

    Values that go together are checked, too, as far as nothing but the config is needed.
    """
    flat = flatten(config)
    for name in flat:
        if name not in KEYS:
            raise InputError(
                f"there is no config key '{name}'{did_you_mean(name, KEYS)} All keys are listed in "
                'configs/base.py.'
            )
    for name, kind in KEYS.items():
        if name not in flat:
            raise InputError(
                f'the config has no {name}. Start get_config() with base.get_config() of '
                'configs/base.py, which defines all keys.'
            )
        kind.check(name, flat[name])
    Noise(flat['noise.type'], flat['noise.std'], num_levels=256)  # checks type and std


# Keys that a config.json must have for its model to be loaded. Keys that do not affect the
# parameters may be missing, such as keys that were introduced after the file was written.
_NEEDED = {
    'model': tuple(name for name in ATTRIBUTES if name not in NON_PARAMETER_KEYS),
    'train': ('ema_decay',),
}
_REQUIRED_IF_PRESENT = {'noise': ('type', 'std'), 'data': ('name',)}


CLASS_NAMES = 'class_names'  # in the config.json of a shared model
CONVERTED_FROM = 'converted_from'  # in that of a converted one: the file, and its SHA-256


def check_record(record) -> None:
    """Raises InputError, saying what is wrong, unless a `config.json` has the form of a config.

    Only the values that are needed to load the model are checked, so that a model remains readable
    even if this version refuses another setting of its run.
    """
    if not isinstance(record, Mapping):
        raise InputError('it is not an object of sections')
    for section in dict.fromkeys(name.partition('.')[0] for name in KEYS if '.' in name):
        needed = _NEEDED.get(section, ())
        if section in record or needed:
            needed = needed or _REQUIRED_IF_PRESENT.get(section, ())
            _check_section(section, record.get(section, {}), needed)
    Strings().check(CLASS_NAMES, record.get(CLASS_NAMES, ()))
    origin = record.get(CONVERTED_FROM, {'file': ''})
    if not isinstance(origin, Mapping) or not isinstance(origin.get('file'), str):
        raise InputError(f'its section {CONVERTED_FROM} names no file')


def _check_section(section: str, values, needed: tuple[str, ...]) -> None:
    if not isinstance(values, Mapping):
        raise InputError(f'its section {section} is not an object')
    for key in needed:
        if key not in values:
            raise InputError(f'it has no {section}.{key}')
    for key, value in values.items():
        name = f'{section}.{key}'
        is_read = section in ('model', 'noise') or key in needed
        if is_read and name not in KEYS:
            raise InputError(f'{name} is unknown to this version')
        if is_read:
            KEYS[name].check(name, value)
        elif not _is_plain(value):
            raise InputError(f'{name} is not a value of a config')


def _is_plain(value) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return all(item is None or isinstance(item, str | int | float) for item in items)


def flatten(config: ConfigDict) -> dict[str, Any]:
    """The values of a config by 'section.key'."""
    return flatten_dict(config.to_dict(), sep='.')
