"""What is handed on comes back as it was; what is damaged is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from runs import files_in

import tarflow_jax
from tarflow_jax.errors import InputError
from tarflow_jax.formats import safetensors
from tarflow_jax.trained_flow import TrainedFlow

FILES = ['README.md', 'config.json', 'model.safetensors']


@pytest.fixture(scope='module')
def flow(whole):
    return tarflow_jax.load(whole[0])


@pytest.fixture(scope='module')
def saved(flow, tmp_path_factory):
    """The folder as it was saved; only to be read."""
    return flow.save_pretrained(tmp_path_factory.mktemp('saved') / 'digits')


@pytest.fixture
def folder(saved, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(saved, tmp_path / 'digits')


def assert_same(flow, other):
    assert other.model == flow.model
    assert other.noise == flow.noise
    jax.tree.map(np.testing.assert_array_equal, other.params, flow.params)


def test_a_model_comes_back(flow, saved):
    assert sorted(path.name for path in saved.iterdir()) == FILES
    for other in tarflow_jax.load(saved), tarflow_jax.from_pretrained(str(saved)):
        assert_same(flow, other)
        assert other.config.data.to_dict() == {'name': 'digits'}
    assert json.loads((saved / 'config.json').read_text()).keys() == {
        *('model', 'noise', 'data', 'train')
    }


def test_it_is_saved_again_over_itself(flow, saved, folder):
    (folder / 'README.md').write_text('changed')
    tarflow_jax.load(folder).save_pretrained(folder)
    assert_same(flow, tarflow_jax.load(folder))
    assert (folder / 'model.safetensors').read_bytes() == (saved / FILES[2]).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_every_kind_of_model(random_params, tmp_path):
    from flows import FLOWS

    for name in 'volume_preserving', 'unrolled':
        model = FLOWS[name]
        flow = TrainedFlow(model, random_params(model), ConfigDict({'model': {}}))
        assert_same(flow, tarflow_jax.load(flow.save_pretrained(tmp_path / name)))


def test_names_of_classes_go_along(flow, tmp_path):
    config = ConfigDict({'model': {}, 'class_names': [f'digit {n}' for n in range(10)]})
    named = TrainedFlow(flow.model, flow.params, config)
    other = tarflow_jax.load(named.save_pretrained(tmp_path / 'named'))
    assert other.class_names == tuple(f'digit {n}' for n in range(10))
    np.testing.assert_array_equal(other.sample(0, 2, labels='digit 3'), flow.sample(0, 2, labels=3))


def test_a_workdir_is_not_written_over(flow, whole):
    before = files_in(whole[0])
    with pytest.raises(InputError, match=r'is a workdir, whose config\.json would be replaced'):
        flow.save_pretrained(whole[0])
    assert files_in(whole[0]) == before


def test_a_folder_that_is_a_file(flow, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match=r'cannot be written to: .*give another folder'):
        flow.save_pretrained(tmp_path / 'file')


def test_truncated_weights(folder):
    weights = folder / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match='is not a safetensors file that can be read'):
        tarflow_jax.load(folder)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda t: t.pop('blocks.pos_embed'), r'blocks.pos_embed is missing, not \(2, 4, 16\)'),
        (lambda t: t.update(bias=np.zeros(3, np.float32)), 'bias is unexpected'),
        (
            lambda t: t.update({'blocks.pos_embed': np.zeros((2, 4, 8), np.float32)}),
            r'blocks.pos_embed is \(2, 4, 8\), not \(2, 4, 16\)',
        ),
        (
            lambda t: t.update({'blocks.pos_embed': np.zeros((2, 4, 16), np.float16)}),
            'blocks.pos_embed is float16, not float32',
        ),
        (
            lambda t: t.update({'blocks.pos_embed': np.full((2, 4, 16), np.nan, np.float32)}),
            'blocks.pos_embed has values that are not finite',
        ),
    ],
)
def test_weights_of_another_model(folder, change, words):
    tensors = safetensors.read(folder / 'model.safetensors')
    change(tensors)
    safetensors.write(folder / 'model.safetensors', tensors)
    with pytest.raises(InputError, match=words):
        tarflow_jax.load(folder)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('{}', r'config\.json is damaged: it has no model.image_shape'),
        ('{"model": ', r'config\.json is damaged'),
        (None, r'it has no config\.json'),
    ],
)
def test_a_config_that_does_not_say_the_model(folder, text, words):
    config = folder / 'config.json'
    config.unlink() if text is None else config.write_text(text)
    with pytest.raises(InputError, match=words):
        tarflow_jax.load(folder)


def test_class_names_that_are_none(folder):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | {'class_names': [1, 2]}))
    with pytest.raises(
        InputError, match=r'config\.json is damaged: class_names must be a tuple of strings'
    ):
        tarflow_jax.load(folder)
