import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax import denoise, sample
from tarflow_jax.errors import InputError, RunError
from tarflow_jax.flow import TarFlow
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.sampling.batches import host_images, sample_batches
from tarflow_jax.sampling.draw import draw
from tarflow_jax.sampling.labels import spread_labels

MODEL = TarFlow((4, 4, 1), 2, width=8, head_dim=4, num_blocks=2, layers_per_block=1, num_classes=3)
NUM_SAMPLES = 10
EVEN_LABELS = np.arange(NUM_SAMPLES, dtype=np.int32) % 3


def sample_to_host(*args, **settings):
    """Batches of samples as NumPy arrays, whether finite or not."""
    return map(host_images, sample_batches(*args, max_draws=1, **settings))


@pytest.fixture(scope='module')
def params(random_params):
    return random_params(MODEL)


@pytest.fixture(scope='module')
def noise(params, one_device):
    """What samples of seed 0 are made of: an identity lets it through."""
    proj_out = jax.tree.map(jnp.zeros_like, params['blocks']['proj_out'])
    identity = {'blocks': {**params['blocks'], 'proj_out': proj_out}}
    batches = sample_to_host(
        MODEL, identity, one_device, num_samples=NUM_SAMPLES, batch_size=NUM_SAMPLES, seed=0
    )
    return np.concatenate(list(batches))


@pytest.fixture(scope='module')
def expected(params, noise):
    return sample(MODEL, params, noise, EVEN_LABELS)


@pytest.mark.parametrize(('batch_size', 'sizes'), [(4, [4, 4, 2]), (10, [10]), (99, [10])])
def test_the_batch_size_does_not_change_the_samples(
    params, expected, one_device, batch_size, sizes
):
    batches = list(
        sample_to_host(
            MODEL, params, one_device, num_samples=NUM_SAMPLES, batch_size=batch_size, seed=0
        )
    )
    assert [len(batch) for batch in batches] == sizes
    np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-5)


def test_many_devices_share_a_batch(params, expected):
    batches = list(
        sample_to_host(MODEL, params, make_mesh(), num_samples=NUM_SAMPLES, batch_size=4, seed=0)
    )
    assert [len(batch) for batch in batches] == [8, 2]
    np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-5)


def test_the_noise_is_standard_normal_and_another_for_every_sample_and_seed(
    params, noise, expected, one_device
):
    assert np.abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert np.abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    assert len(np.unique(noise)) == noise.size
    other = sample_to_host(MODEL, params, one_device, num_samples=10, batch_size=10, seed=1)
    assert (next(other) != expected).all()


def test_guidance_and_a_denoising_step_are_handed_on(params, noise, one_device):
    labels = EVEN_LABELS
    settings = dict(guidance=0.5, guide='shift')
    images = sample(MODEL, params, noise, labels, **settings)
    expected = denoise(MODEL, params, images, labels, noise_std=0.2)
    (batch,) = sample_to_host(
        MODEL,
        params,
        one_device,
        num_samples=10,
        batch_size=10,
        seed=0,
        denoise_std=0.2,
        **settings,
    )
    np.testing.assert_allclose(batch, expected, atol=1e-5)


def test_labels_run_evenly_through_the_classes():
    np.testing.assert_array_equal(spread_labels('even', 7, 3, seed=0), [0, 1, 2, 0, 1, 2, 0])
    assert spread_labels('even', 7, 0, seed=0) is None
    assert spread_labels('uniform', 7, 0, seed=0) is None


def test_labels_are_drawn_uniformly_each_by_its_number():
    labels = spread_labels('uniform', 30_000, 3, seed=0)
    assert labels.dtype == np.int32
    np.testing.assert_allclose(np.bincount(labels) / 10_000, 1, atol=0.04)  # 5 standard deviations
    np.testing.assert_array_equal(spread_labels('uniform', 11, 3, seed=0), labels[:11])
    assert (spread_labels('uniform', 100, 3, seed=1) != labels[:100]).any()
    with pytest.raises(InputError, match="numbers such as 3,3,7; got 'odd'"):
        spread_labels('odd', 7, 3, seed=0)


def test_samples_have_the_labels_asked_for(params, noise, one_device):
    settings = dict(num_samples=NUM_SAMPLES, batch_size=4, seed=0)
    batches = sample_to_host(MODEL, params, one_device, labels='uniform', **settings)
    labels = spread_labels('uniform', NUM_SAMPLES, 3, seed=0)
    expected = sample(MODEL, params, noise, labels)
    np.testing.assert_allclose(np.concatenate(list(batches)), expected, atol=1e-5)


@pytest.fixture(scope='module')
def wild_params(params):
    """Scales so large that some samples overflow."""
    kernel = params['blocks']['proj_out']['kernel'].at[:, :, 0].multiply(10)
    proj_out = {**params['blocks']['proj_out'], 'kernel': kernel}
    return {'blocks': {**params['blocks'], 'proj_out': proj_out}}


@pytest.mark.parametrize('data', [1, 8])
def test_samples_that_are_not_finite_are_drawn_anew_and_no_others(wild_params, data):
    mesh = make_mesh(data=data, tensor=8 // data)
    settings = dict(num_samples=64, batch_size=64, seed=0)
    (as_they_come,) = sample_batches(MODEL, wild_params, mesh, max_draws=1, **settings)
    finite = np.isfinite(as_they_come.images).all(axis=(1, 2, 3))
    assert 0 < (~finite).sum() < 64
    assert as_they_come.num_redrawn == 0

    (redrawn,) = sample_batches(MODEL, wild_params, mesh, max_draws=100, **settings)
    assert np.isfinite(redrawn.images).all()
    np.testing.assert_array_equal(redrawn.images[finite], as_they_come.images[finite])
    assert redrawn.num_redrawn >= (~finite).sum()
    parts = sample_batches(
        MODEL, wild_params, mesh, max_draws=100, **{**settings, 'batch_size': 16}
    )
    np.testing.assert_allclose(
        np.concatenate([part.images for part in parts]), redrawn.images, rtol=1e-2
    )


def test_samples_that_never_get_finite(wild_params, one_device):
    settings = dict(num_samples=64, batch_size=64, seed=0)
    with pytest.raises(
        RunError, match=r'not finite after 2 draws of its noise. Lower sample\.guid'
    ):
        list(sample_batches(MODEL, wild_params, one_device, max_draws=2, **settings))


def test_draws_from_a_key_are_drawn_anew_in_the_same_way(wild_params, one_device, caplog):
    (expected,) = sample_batches(
        MODEL, wild_params, one_device, num_samples=64, batch_size=64, seed=0
    )
    assert expected.num_redrawn > 0
    images = draw(MODEL, wild_params, jax.random.key(0), np.arange(64) % 3, batch_size=24)
    np.testing.assert_allclose(images, expected.images, rtol=1e-2)
    assert caplog.text == ''
    diverged = jax.tree.map(lambda leaf: leaf * jnp.nan, wild_params)
    images = draw(MODEL, diverged, jax.random.key(0), np.arange(5) % 3, batch_size=3)
    assert np.isnan(images).all()
    assert '5 samples are not finite after 10 draws' in caplog.text


def test_what_ends_the_drawing_is_asked_before_every_batch(params, one_device):
    calls = []
    settings = dict(num_samples=NUM_SAMPLES, batch_size=4, seed=0)
    batches = sample_to_host(
        MODEL, params, one_device, before_batch=lambda: calls.append(None), **settings
    )
    for number, _ in enumerate(batches, start=1):
        assert len(calls) == number
