"""Every experiment builds, and every key is explained."""

import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from runs import ROOT

from configs import base
from tarflow_jax import experiment
from tarflow_jax.training.loop import check_keys
from tarflow_jax.training.objective import Noise

FILES = sorted((ROOT / 'configs').glob('*.py'))
EXPERIMENTS = [path.stem for path in FILES if path.stem != 'base']


def keys_of(config, prefix=''):
    for key, value in config.items():
        if hasattr(value, 'items'):
            yield from keys_of(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}'


@pytest.mark.parametrize('name', ['base', *EXPERIMENTS])
def test_a_config_builds_and_its_shapes_evaluate(name):
    config = importlib.import_module(f'configs.{name}').get_config()
    model = experiment.make_model(config)
    images = jax.ShapeDtypeStruct((2, *config.model.image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    latents, log_det = jax.eval_shape(model.apply, params, images, labels)
    assert latents.shape == images.shape
    assert log_det.shape == (2,)
    experiment.how_to_sample(config, model)
    experiment.check_seeds(config)
    check_keys(config)
    Noise(config.noise.type, config.noise.std, 256)


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


def test_figures_of_the_published_model():
    config = importlib.import_module('configs.afhq256').get_config()
    model = experiment.make_model(config)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == pytest.approx(463.5e6, rel=1e-3)
