import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax import denoise, sample
from tarflow_jax.flow import TarFlow
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.sampling.generate import even_labels, generate

MODEL = TarFlow((4, 4, 1), 2, width=8, head_dim=4, num_blocks=2, layers_per_block=1, num_classes=3)
NUM_SAMPLES = 10


@pytest.fixture(scope='module')
def params(random_params):
    return random_params(MODEL)


@pytest.fixture(scope='module')
def noise(params, one_device):
    """What samples of seed 0 are made of: an identity lets it through."""
    proj_out = jax.tree.map(jnp.zeros_like, params['blocks']['proj_out'])
    identity = {'blocks': {**params['blocks'], 'proj_out': proj_out}}
    batches = generate(
        MODEL, identity, one_device, num_samples=NUM_SAMPLES, batch_size=NUM_SAMPLES, seed=0
    )
    return np.concatenate(list(batches))


@pytest.fixture(scope='module')
def expected(params, noise):
    return sample(MODEL, params, noise, even_labels(NUM_SAMPLES, 3))


@pytest.mark.parametrize(('batch_size', 'sizes'), [(4, [4, 4, 2]), (10, [10]), (99, [10])])
def test_the_batch_size_does_not_change_the_samples(
    params, expected, one_device, batch_size, sizes
):
    batches = list(
        generate(MODEL, params, one_device, num_samples=NUM_SAMPLES, batch_size=batch_size, seed=0)
    )
    assert [len(batch) for batch in batches] == sizes
    np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-5)


def test_many_devices_share_a_batch(params, expected):
    batches = list(
        generate(MODEL, params, make_mesh(), num_samples=NUM_SAMPLES, batch_size=4, seed=0)
    )
    assert [len(batch) for batch in batches] == [8, 2]
    np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-5)


def test_the_noise_is_standard_normal_and_another_for_every_sample_and_seed(
    params, noise, expected, one_device
):
    assert np.abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert np.abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    assert len(np.unique(noise)) == noise.size
    other = generate(MODEL, params, one_device, num_samples=10, batch_size=10, seed=1)
    assert (next(other) != expected).all()


def test_guidance_and_a_denoising_step_are_handed_on(params, noise, one_device):
    labels = even_labels(NUM_SAMPLES, 3)
    how = dict(guidance=0.5, guide='shift')
    images = sample(MODEL, params, noise, labels, **how)
    expected = denoise(MODEL, params, images, labels, noise_std=0.2)
    (batch,) = generate(
        MODEL, params, one_device, num_samples=10, batch_size=10, seed=0, denoise_std=0.2, **how
    )
    np.testing.assert_allclose(batch, expected, atol=1e-5)


def test_labels_run_evenly_through_the_classes():
    np.testing.assert_array_equal(even_labels(7, 3), [0, 1, 2, 0, 1, 2, 0])
    assert even_labels(7, 0) is None
