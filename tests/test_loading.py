"""A model comes back from a workdir, a checkpoint, or a published file; or it is said why not."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import arrays_in, files_in

import tarflow_jax
from tarflow_jax import experiment, loading
from tarflow_jax.errors import InputError


def assert_saved_as(arrays, item, params):
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    assert leaves
    for path, leaf in leaves:
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, arrays[f"['{item}']{jax.tree_util.keystr(path)}"])


@pytest.fixture
def workdir(whole, tmp_path):
    """A copy of the workdir of a run, to be damaged."""
    return shutil.copytree(whole[0], tmp_path / 'run')


def test_a_workdir(runs, whole):
    model, params = tarflow_jax.load(whole[0])
    assert model == experiment.make_model(runs.make_config())
    assert_saved_as(arrays_in(runs, whole[0], 24), 'ema_params', params)
    assert {d.id for leaf in jax.tree.leaves(params) for d in leaf.devices()} == {0}
    images = jnp.zeros((3, *model.image_shape))
    latents, log_det = model.apply({'params': params}, images, jnp.array([0, 9, -1]))
    assert latents.shape == images.shape
    assert log_det.shape == (3,)


@pytest.mark.parametrize('attention', ['splash', 'cudnn'])
def test_what_was_trained_on_other_devices(workdir, whole, attention):
    config = json.loads((workdir / 'config.json').read_text())
    config['model']['attention'] = attention
    (workdir / 'config.json').write_text(json.dumps(config))
    model, params = tarflow_jax.load(workdir)
    assert model.attention == 'xla'
    jax.tree.map(np.testing.assert_array_equal, params, tarflow_jax.load(whole[0])[1])


def test_one_of_its_checkpoints(runs, whole):
    _, params = tarflow_jax.load(str(whole[0] / 'checkpoints' / '12'))
    assert_saved_as(arrays_in(runs, whole[0], 12), 'ema_params', params)


def test_without_an_average_the_parameters_are_taken(runs, workdir):
    config = json.loads((workdir / 'config.json').read_text())
    config['train']['ema_decay'] = 0.0
    (workdir / 'config.json').write_text(json.dumps(config))
    _, params = tarflow_jax.load(workdir)
    assert_saved_as(arrays_in(runs, workdir, 24), 'params', params)


def test_a_published_file(golden_dir):
    model, params = tarflow_jax.load(golden_dir / 'cond.pth', image_shape=(8, 8, 3), patch_size=2)
    sizes = (model.width, model.num_blocks, model.layers_per_block, model.num_classes)
    assert sizes == (64, 3, 2, 5)
    assert params['blocks']['pos_embed'].shape == (3, 16, 64)


def test_a_published_name_tells_what_the_tensors_do_not(golden_dir, tmp_path):
    path = shutil.copy(golden_dir / 'uncond.pth', tmp_path / 'mnist_model_2_128_2_1_0.10.pth')
    model, params = tarflow_jax.load(path)
    assert (model.image_shape, model.patch_size) == ((8, 8, 1), 2)
    given = tarflow_jax.load(golden_dir / 'uncond.pth', image_shape=(8, 8, 1), patch_size=2)
    assert model == given[0]
    jax.tree.map(np.testing.assert_array_equal, params, given[1])
    assert {d.id for leaf in jax.tree.leaves(params) for d in leaf.devices()} == {0}
    with pytest.raises(InputError, match='patch_size=2 by its name; got patch_size=4'):
        tarflow_jax.load(path, patch_size=4)


def test_a_published_name_that_says_otherwise(golden_dir, tmp_path):
    path = shutil.copy(golden_dir / 'uncond.pth', tmp_path / 'mnist_model_2_768_2_1_0.10.pth')
    with pytest.raises(InputError, match='width is 768 in its name and 128 in its tensors'):
        tarflow_jax.load(path)


def test_the_noise_and_the_data_set_of_a_model(golden_dir, whole, tmp_path):
    for path in whole[0], whole[0] / 'checkpoints' / '12':
        assert loading.noise_of(path) == ('gaussian', 0.1)
        assert loading.dataset_of(path) == 'digits'
    for path, noise, dataset in [
        (tmp_path / 'afhq_model_8_768_8_8_0.07.pth', ('gaussian', 0.07), 'afhq'),
        (tmp_path / 'imagenet64_model_2_768_8_8_uniform.pth', ('uniform', 0.0), 'imagenet64'),
        (golden_dir / 'cond.pth', None, None),
    ]:
        assert (loading.noise_of(path), loading.dataset_of(path)) == (noise, dataset)


def test_the_std_of_a_config_with_uniform_noise_means_nothing(workdir):
    config = json.loads((workdir / 'config.json').read_text())
    config['noise'] = {'type': 'uniform', 'std': 0.05}
    (workdir / 'config.json').write_text(json.dumps(config))
    assert loading.noise_of(workdir) == ('uniform', 0.0)


def test_a_published_file_needs_what_it_does_not_tell(golden_dir):
    with pytest.raises(InputError, match=r'give patch_size=P \(and image_shape=\(H, W, C\)'):
        tarflow_jax.load(golden_dir / 'cond.pth')
    with pytest.raises(InputError, match='16 tokens of 12 numbers'):
        tarflow_jax.load(golden_dir / 'cond.pth', image_shape=(8, 8, 1), patch_size=2)


def test_a_damaged_newest_checkpoint_is_named_and_left_as_it_is(runs, workdir, caplog):
    shutil.rmtree(workdir / 'checkpoints' / '24' / 'ema_params')
    before = files_in(workdir)
    _, params = tarflow_jax.load(workdir)
    assert_saved_as(arrays_in(runs, workdir, 20), 'ema_params', params)
    assert f'{workdir}/checkpoints/24 is damaged' in caplog.text
    assert files_in(workdir) == before


def test_a_damaged_checkpoint_that_was_asked_for_is_an_error(workdir):
    folder = workdir / 'checkpoints' / '24'
    shutil.rmtree(folder / 'ema_params')
    with pytest.raises(InputError, match=f'the checkpoint {folder} is damaged'):
        tarflow_jax.load(folder)


def test_damage_to_what_is_not_read_does_not_matter(runs, whole, workdir, caplog):
    shutil.rmtree(workdir / 'checkpoints' / '24' / 'opt_state')
    _, params = tarflow_jax.load(workdir)
    assert_saved_as(arrays_in(runs, whole[0], 24), 'ema_params', params)
    assert caplog.text == ''


def test_no_checkpoint_yet(workdir):
    shutil.rmtree(workdir / 'checkpoints')
    before = files_in(workdir)
    with pytest.raises(InputError, match=f'{workdir} has no checkpoint yet'):
        tarflow_jax.load(workdir)
    assert files_in(workdir) == before


def test_a_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(InputError, match=f'{tmp_path} is not a workdir'):
        tarflow_jax.load(tmp_path)


@pytest.mark.parametrize('content', ['', '{"model": {', '[]', '{}', '{"model": {"width": 16}}'])
def test_a_damaged_config(workdir, content):
    (workdir / 'config.json').write_text(content)
    with pytest.raises(InputError, match=r'config\.json is damaged'):
        tarflow_jax.load(workdir)


def test_nothing_there(tmp_path):
    for path in tmp_path / 'none', tmp_path / 'checkpoints' / '8':
        with pytest.raises(InputError, match=f'{path}'):
            tarflow_jax.load(path, image_shape=(8, 8, 1), patch_size=2)
