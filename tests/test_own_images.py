"""`configs/images.py`: an experiment for any images that were prepared."""

import math

import jax
import numpy as np
import pytest
from PIL import Image

from configs import images as own_images
from tarflow_jax.build import build
from tarflow_jax.data.image_folder.preparation import prepare_image_folder
from tarflow_jax.errors import InputError


def fill(folder, count, mode='RGB'):
    """So many pictures of 24x20 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(count)
    for i in range(count):
        picture = Image.fromarray(draws.integers(0, 256, (5, 6, 4), np.uint8)).resize((24, 20))
        picture.convert(mode).save(folder / f'{i}.png')


def settings_of(folder, count=300, shape=(16, 16, 3), classes=0):
    """The settings for an .npz file of such images."""
    arrays = {'arr_0': np.zeros((count, *shape), np.uint8)}
    arrays |= {'arr_1': np.arange(count) % classes} if classes else {}
    np.savez(folder / 'images.npz', **arrays)
    return f'{folder}/images.npz'


def num_parameters(config):
    return sum(leaf.size for leaf in jax.tree.leaves(build(config).model.param_shapes()))


FOLDERS = {
    'one class': ({'all': 30}, 'RGB', 0, 29),
    'no class': ({'.': 30}, 'RGB', 0, 29),
    'forty images': ({'a': 20, 'b': 20}, 'RGBA', 2, 38),
    'very unequal classes': ({'rare': 1, 'often': 99}, 'RGB', 2, 95),
    'grey': ({'a': 10, 'b': 10}, 'L', 2, 19),
    'splits': ({'train/a': 20, 'train/b': 20, 'val/a': 4}, 'RGB', 2, 40),
}


@pytest.mark.parametrize('kind', FOLDERS)
def test_a_prepared_folder(tmp_path, kind):
    folders, mode, num_classes, num_images = FOLDERS[kind]
    for name, count in folders.items():
        fill(tmp_path / 'images' / name, count, mode)
    prepare_image_folder('pictures', tmp_path / 'images', tmp_path / 'data', size=16)
    check(f'pictures,dir={tmp_path}/data', (16, 16, 3), num_classes, num_images)


@pytest.mark.parametrize('shape', [(28, 28, 1), (16, 24, 3), (48, 12, 1), (2, 2, 3)])
def test_a_file_of_arrays(tmp_path, shape):
    check(settings_of(tmp_path, 100, shape), shape, 0, 95)
    check(settings_of(tmp_path, 100, shape, classes=5), shape, 5, 95)


def check(settings, shape, num_classes, num_images):
    """For minutes and for hours."""
    for time in '', ',hours=1':
        config = own_images.get_config(settings + time)
        experiment = build(config)
        assert experiment.model.image_shape == experiment.dataset.image_shape == shape
        assert experiment.model.num_classes == num_classes
        assert len(experiment.dataset.split(config.data.train_split)) == num_images
        assert len(experiment.dataset.split(config.data.test_split)) > 0
        assert config.data.num_images == num_images
        assert num_images / 2 < config.train.batch_size <= num_images
        num_steps = config.train.num_epochs * num_images / config.train.batch_size
        assert 0 < config.optimizer.warmup_steps < config.train.sample_every < num_steps


@pytest.mark.parametrize('unit', own_images.MACHINES)
def test_more_time_is_a_larger_model_that_learns_more(tmp_path, unit):
    settings = settings_of(tmp_path, 100_000, (8, 8, 1), classes=10)
    amounts = [0.01, 0.1, 1, 10, 100, 1000]
    configs = [own_images.get_config(f'{settings},{unit}={amount}') for amount in amounts]
    sizes = [num_parameters(config) for config in configs]
    work = [size * config.train.num_epochs for size, config in zip(sizes, configs, strict=True)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= 3
    assert work == sorted(work)


def test_ten_minutes_are_meant_without_a_word(tmp_path):
    settings = settings_of(tmp_path)
    ten = own_images.get_config(f'{settings},minutes=10')
    assert own_images.get_config(settings) == ten


def test_the_time_is_that_of_the_formula(tmp_path):
    """Six FLOPs for each parameter and token."""
    config = own_images.get_config(settings_of(tmp_path, 50_000, (32, 32, 3)))
    num_tokens = (32 // config.model.patch_size) ** 2
    seen = config.train.num_epochs * 47_500
    flops = 6 * num_parameters(config) * num_tokens * seen
    assert math.isclose(flops, 600 * own_images.MACHINES['minutes'].flops, rel_tol=0.05)


def test_few_images_are_not_shown_for_ever(tmp_path):
    many = own_images.get_config(settings_of(tmp_path, 5000))
    few = own_images.get_config(settings_of(tmp_path, 21))
    assert few.train.num_epochs <= own_images.MAX_EPOCHS
    assert num_parameters(few) < num_parameters(many)


@pytest.mark.parametrize(
    ('sides', 'num_tokens', 'patch_size'),
    [
        ((32, 32), 16, 8),
        ((28, 28), 16, 7),
        ((64, 64), 256, 4),
        ((33, 66), 16, 11),
        ((256, 256), 256, 16),
        ((37, 37), 16, None),
    ],
)
def test_patches_divide_the_image_into_about_so_many_tokens(sides, num_tokens, patch_size):
    if patch_size:
        assert own_images.choose_patch_size(*sides, num_tokens) == patch_size
    else:
        with pytest.raises(InputError, match=r'37x37 pixels cannot be cut .* another --size'):
            own_images.choose_patch_size(*sides, num_tokens)


@pytest.mark.parametrize(
    'settings',
    ['x,small', 'x,minutes', 'x,minutes=0', 'x,minutes=nan', 'x,hours=1,minutes=1', 'x,hours=1e9'],
)
def test_a_time_that_is_none(settings):
    with pytest.raises(InputError, match=f"'{settings}' is no NAME, NAME,minutes=10 or NAME,hours"):
        own_images.get_config(settings)


def test_a_data_set_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no data set 'x' in .*NAME,dir=FOLDER is another folder"):
        own_images.get_config(f'x,dir={tmp_path}')
    with pytest.raises(InputError, match=r'images:NAME\. Prepared in .*: none yet\. python -m'):
        own_images.get_config(f',dir={tmp_path}')


def test_a_single_image(tmp_path):
    with pytest.raises(InputError, match='has 1 images to train with; it needs two'):
        own_images.get_config(settings_of(tmp_path, 1))
