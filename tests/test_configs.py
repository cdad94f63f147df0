"""Every experiment builds, and every key is explained."""

import importlib
import math
import pathlib
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import ROOT

from configs import afhq256, base
from tarflow_jax.build import build, make_model
from tarflow_jax.errors import InputError
from tarflow_jax.keys import KEYS
from tarflow_jax.values import Float, Integer

FILES = sorted((ROOT / 'configs').glob('*.py'))
SHARED = ('base', 'paper')
OF_PREPARED_IMAGES = 'images'  # see test_own_images.py
EXPERIMENTS = [path.stem for path in FILES if path.stem not in (*SHARED, OF_PREPARED_IMAGES)]


def keys_of(config, prefix=''):
    for key, value in config.items():
        if hasattr(value, 'items'):
            yield from keys_of(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}'


@pytest.mark.parametrize('name', ['base', *EXPERIMENTS])
def test_a_config_builds_and_its_shapes_evaluate(name):
    config = importlib.import_module(f'configs.{name}').get_config()
    model = build(config).model
    images = jax.ShapeDtypeStruct((2, *config.model.image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    latents, log_det = jax.eval_shape(model.apply, params, images, labels)
    assert latents.shape == images.shape
    assert log_det.shape == (2,)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_an_experiment_has_the_keys_of_base_and_names_its_data(name):
    module = importlib.import_module(f'configs.{name}')
    config = module.get_config()
    assert set(keys_of(config)) == set(keys_of(base.get_config()))
    assert config.data.name
    command = f'python -m tarflow_jax.main --config=configs/{name}.py --workdir=runs/{name}'
    assert command in module.__doc__


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_a_misspelt_key_fails(name):
    config = importlib.import_module(f'configs.{name}').get_config()
    with pytest.raises(AttributeError, match='Did you mean "batch_size"'):
        config.train.bath_size = 1
    with pytest.raises(TypeError):
        config.train.batch_size = 'many'


def test_every_key_of_base_is_explained():
    source = pathlib.Path(base.__file__).read_text()
    explained = set(re.findall(r'^    config\.([\w.]+) = .+?  # \S+', source, re.MULTILINE))
    says_itself = {'data.dir'}  # its value is a name that speaks
    assert set(keys_of(base.get_config())) - explained - says_itself == set()


def test_every_key_of_base_has_its_values():
    assert set(KEYS) == set(keys_of(base.get_config()))


ODD = (
    *(None, True, -1, -(10**400), 10**400, 0.5, -1e300, math.nan, math.inf, -math.inf, 1j),
    *(
        '',
        'x',
        '\0',
        '\udcff',
        b'x',
        (),
        (8, 8),
        ('8', '8', '1'),
        [[]],
        [[1], [1, 2]],
        {},
        object(),
        np.zeros(3),
    ),
    *(np.float32('nan'), np.zeros((), 'U1')),
)


@pytest.mark.parametrize('name', KEYS)
def test_no_value_of_a_key_is_a_surprise(name):
    """It is taken as what it is, or refused in a sentence that names the key."""
    refusals = [words for value in ODD if (words := refusal(name, value))]
    assert len(refusals) >= len(ODD) - 4
    for words in refusals:
        assert re.fullmatch(rf'{name} (must|\S+ cannot) [^\n]{{1,300}}\.', words)


def refusal(name, value):
    try:
        KEYS[name].check(name, value)
    except InputError as error:
        return str(error)
    return None


# What would only come up after the first steps.
NUMBERS = [name for name, kind in KEYS.items() if isinstance(kind, Integer | Float)]


@pytest.mark.parametrize('name', NUMBERS)
def test_no_number_is_without_end(name):
    for value in math.nan, math.inf, -math.inf, 1e300, -1e300, 10**400, -(10**400):
        with pytest.raises(InputError, match=f'{name} must '):
            KEYS[name].check(name, value)


CPU = SimpleNamespace(platform='cpu')
TPU = SimpleNamespace(platform='tpu')
H100 = SimpleNamespace(platform='gpu', compute_capability='9.0')
V100 = SimpleNamespace(platform='gpu', compute_capability='7.0')
AMD = SimpleNamespace(platform='gpu', compute_capability='gfx942')
# As published, in millions.
PAPER = {
    'imagenet64_bpd': 460.1,
    'imagenet64_uncond': 460.1,
    'imagenet64_cond': 823.0,
    'imagenet64_cond_p4': 817.6,
    'imagenet128': 823.9,
    'afhq256': 463.5,
}


@pytest.mark.parametrize('variant', ['pod', 'one_gpu'])
@pytest.mark.parametrize('name', PAPER)
def test_the_models_of_the_paper(name, variant):
    config = importlib.import_module(f'configs.{name}').get_config(variant)
    device = H100 if variant == 'one_gpu' else TPU
    model = make_model(config.model, device).clone(attention='xla')
    params = model.param_shapes()
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert round(size / 1e6, 1) == PAPER[name]
    assert config.train.batch_size % max(config.train.microbatches, 1) == 0
    epochs = config.optimizer.warmup_steps * config.train.batch_size / config.data.num_images
    assert 0.98 < epochs <= 1


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="no variant 'gpus'; there are pod, one_gpu"):
        afhq256.get_config('gpus')


@pytest.mark.parametrize(
    ('device', 'change', 'chosen'),
    [
        (TPU, {}, 'splash'),
        (TPU, {'model.dtype': 'float32'}, 'xla'),
        (TPU, {'model.patch_size': 32}, 'xla'),
        (TPU, {'model.attention': 'xla'}, 'xla'),
        (H100, {}, 'cudnn'),
        (H100, {'model.dtype': 'float32'}, 'xla'),
        (H100, {'model.head_dim': 256}, 'xla'),
        (V100, {}, 'xla'),
        (AMD, {}, 'xla'),
        (CPU, {}, 'xla'),
    ],
)
def test_attention_is_chosen_for_the_device(device, change, chosen):
    config = afhq256.get_config()
    config.update_from_flattened_dict(change)
    assert make_model(config.model, device).attention == chosen


@pytest.mark.parametrize(('attention', 'device'), [('splash', 'tpu'), ('cudnn', 'gpu')])
def test_attention_of_another_device_is_refused(attention, device):
    config = afhq256.get_config()
    config.model.attention = attention
    with pytest.raises(InputError, match=f'runs on a {device}; the devices here are cpu. Set'):
        make_model(config.model, CPU)
