"""The network against torch-fidelity's, pytorch-fid's and clean-fid's numbers, of one set of random
weights; tests/golden/inception tells how they were made.
"""

import functools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from golden.inception import recipe

from tarflow_jax.data.dataset import ArraySplit
from tarflow_jax.evaluation import inception_weights, quality
from tarflow_jax.evaluation.distances import frechet_distance
from tarflow_jax.evaluation.features import Features
from tarflow_jax.evaluation.inception import Inception
from tarflow_jax.evaluation.preprocessing import PREPROCESSINGS, preprocess
from tarflow_jax.formats import torchfile
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.mesh import make_mesh

GOLDEN = Path(recipe.__file__).parent


@pytest.fixture(scope='module')
def params():
    shapes = inception_weights.tensor_shapes()
    return inception_weights.from_state_dict(
        {name: recipe.tensor(name, shape) for name, shape in shapes.items()}
    )


@pytest.fixture(scope='module')
def weights_file(tmp_path_factory):
    """A file of the same weights."""
    path = tmp_path_factory.mktemp('weights') / 'random.pth'
    shapes = inception_weights.tensor_shapes()
    torchfile.write_state_dict(path, {name: recipe.tensor(name, s) for name, s in shapes.items()})
    return path


@jax.jit
def network(params, x):
    return Inception().apply({'params': params}, x)


@functools.cache
def pixels(package):
    """Two images of each size as a package prepares them."""
    images = (recipe.images(size, size) for size in recipe.IMAGE_SIZES)
    return np.concatenate([preprocess(of_one_size, package) for of_one_size in images])


@pytest.fixture(scope='module')
def features(params):
    """By package, what our network makes of its pixels."""
    return functools.cache(lambda package: jax.device_get(network(params, pixels(package))))


@pytest.fixture(scope='module')
def golden():
    """By package, the same numbers of its own: two rows for each size."""

    @functools.cache
    def read(package):
        with np.load(GOLDEN / f'{package}.npz') as arrays:
            names = {key.rpartition('_')[0] for key in arrays} - {'pixels'}
            return {
                name: np.concatenate([arrays[f'{name}_{size}'] for size in recipe.IMAGE_SIZES])
                for name in names
            }

    return read


@pytest.mark.parametrize('package', PREPROCESSINGS)
def test_features_are_those_of_the_packages(package, features, golden):
    ours, theirs = features(package), golden(package)
    assert {'pool', 'spatial'} <= set(theirs)
    for name, expected in theirs.items():
        assert ours[name].dtype == np.float32
        np.testing.assert_allclose(
            ours[name], expected, rtol=1e-4, atol=3e-5 * expected.std(), err_msg=name
        )


def test_the_numbers_of_torch_fidelity_are_all_there_are(features, golden):
    ours, theirs = features('torch-fidelity'), golden('torch-fidelity')
    assert {name: x.shape for name, x in ours.items()} == {
        'pool': (8, 2048),
        'spatial': (8, 17 * 17 * 7),
        'logits': (8, 1008),
        'logits_unbiased': (8, 1008),
    }
    assert set(ours) == set(theirs)


def test_golden_features_tell_images_and_packages_apart(golden):
    """Or they would prove little: by a hundred times what is let pass above."""
    pools = {package: golden(package)['pool'] for package in PREPROCESSINGS}
    for pool in pools.values():
        assert (pool > 0).mean() > 0.5
        assert np.std(pool, axis=0).mean() > 3e-2 * pool.std()
    images_of_32 = [pool[:2] for pool in pools.values()]
    for i in range(3):
        difference = np.abs(images_of_32[i] - images_of_32[i - 1])
        assert difference.mean() > 3e-3 * images_of_32[i].std()


def test_eight_devices_compute_what_one_does(params, features):
    mesh = make_mesh(data=4, fsdp=2)
    x = jax.device_put(pixels('torch-fidelity'), rules.batch_sharding(mesh))
    on_all = network(jax.device_put(params, rules.replicated(mesh)), x)
    for name, by_one in features('torch-fidelity').items():
        assert on_all[name].sharding.spec[0] == rules.BATCH[0]
        np.testing.assert_allclose(
            on_all[name], by_one, rtol=1e-5, atol=1e-5 * np.abs(by_one).max(), err_msg=name
        )


def test_the_network_has_the_published_size():
    """The bytes of the float32 tensors of torch-fidelity's state dict."""
    elements = sum(math.prod(shape) for shape in inception_weights.tensor_shapes().values())
    assert 4 * elements == 95_541_568


@pytest.mark.parametrize('package', PREPROCESSINGS)
def test_fid_of_two_image_sets_is_that_of_the_packages(weights_file, one_device, package):
    """From the images to the distance, as an evaluation does it."""
    compute = Features(['pool'], one_device, preprocessing=package, weights=weights_file)
    found = []
    for images in recipe.image_sets():
        split = ArraySplit(images, np.full(len(images), -1, np.int32))
        found.append(
            quality.measure_split(split, 256, compute, one_device, batch_size=8, flip=False)
        )
    reference, samples = found
    ours = frechet_distance(reference.gaussians['pool'], samples.gaussians['pool'])
    expected = json.loads((GOLDEN / 'metrics.json').read_text())['fid_of_images'][package]
    assert ours == pytest.approx(expected, rel=1e-4)
