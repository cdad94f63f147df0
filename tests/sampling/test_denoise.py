import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax import denoise
from tarflow_jax.errors import InputError
from tarflow_jax.flow import TarFlow

SIZES = dict(image_shape=(4, 4, 1), patch_size=2, width=8, head_dim=4, layers_per_block=1)
MODEL = TarFlow(**SIZES, num_blocks=2, num_classes=3)
VOLUME_PRESERVING = TarFlow(**SIZES, num_blocks=2, volume_preserving=True)


def as_identity(params):
    """The same parameters, but for an output projection of zeros."""
    proj_out = jax.tree.map(jnp.zeros_like, params['blocks']['proj_out'])
    return {**params, 'blocks': {**params['blocks'], 'proj_out': proj_out}}


def test_one_step_follows_the_gradient_of_log_prob(random_params, random_batch):
    """x + std^2 * gradient, the gradient taken by central differences."""
    params = random_params(MODEL)
    (image,), _ = random_batch(MODEL, batch=1)
    label = 1

    @jax.jit
    def log_prob(images):
        labels = jnp.full(len(images), label)
        return MODEL.apply({'params': params}, images, labels, method='log_prob')

    step = 1e-2
    nudges = step * np.eye(image.size, dtype=np.float32).reshape(-1, *image.shape)
    gradient = (log_prob(image + nudges) - log_prob(image - nudges)) / (2 * step)
    std = 0.5
    expected = image + std**2 * gradient.reshape(image.shape)
    (denoised,) = denoise(MODEL, params, image[None], np.array([label]), noise_std=std)
    np.testing.assert_allclose(denoised, expected, atol=2e-3)
    assert np.abs(denoised - image).max() > 0.1


def test_without_noise_nothing_changes(random_params, random_batch):
    images, labels = random_batch(MODEL)
    same = denoise(MODEL, random_params(MODEL), images, labels, noise_std=0)
    np.testing.assert_array_equal(same, images)


def test_gaussian_data_moves_to_its_posterior_mean(random_params):
    """Clean + noise ~ N(0, 1) is what an identity models; E[clean | sum] = (1 - std^2) sum."""
    draws = np.random.default_rng(0)
    std = 0.6
    clean = draws.normal(scale=np.sqrt(1 - std**2), size=(500, 4, 4, 1)).astype(np.float32)
    noisy = clean + std * draws.normal(size=clean.shape).astype(np.float32)
    denoised = denoise(MODEL, as_identity(random_params(MODEL)), noisy, noise_std=std)
    np.testing.assert_allclose(denoised, noisy * (1 - std**2), atol=1e-5)
    error = np.mean((denoised - clean) ** 2)
    assert error == pytest.approx(std**2 * (1 - std**2), rel=0.05)
    assert error < np.mean((noisy - clean) ** 2)


def test_the_prior_decides_which_density_a_volume_preserving_model_climbs(
    random_params, random_batch
):
    params = as_identity(random_params(VOLUME_PRESERVING))
    images, _ = random_batch(VOLUME_PRESERVING)
    climb = functools.partial(denoise, VOLUME_PRESERVING, params, images, noise_std=0.3)
    np.testing.assert_allclose(climb(), images * (1 - 0.3**2), atol=1e-6)
    tracked = images * (1 - 0.3**2 / np.asarray(params['prior_var']))
    np.testing.assert_allclose(climb(prior='tracked'), tracked, atol=1e-6)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(noise_std=-0.1), 'noise_std must be at least 0; got -0.1'),
        (dict(noise_std=float('nan')), 'noise_std must be at least 0; got nan'),
        (dict(noise_std=float('inf')), 'noise_std must be at most 10; got inf'),
        (dict(noise_std=[0.1]), r'noise_std must be a number; got \[0.1\]'),
        (dict(prior='trackd'), "prior must be one of tracked, standard; got 'trackd'"),
        (dict(prior=None), 'prior must be one of tracked, standard; got None'),
        (dict(images=np.zeros((1, 4, 4, 1), np.uint8)), 'take images / 127.5 - 1'),
        (dict(labels=[3]), r'lie in 0\.\.2, or be -1 for no label; got \[3\]'),
        (dict(params=None), 'params are not those of the model'),
    ],
)
def test_what_cannot_be_is_refused(random_params, arguments, message):
    sound = dict(params=random_params(MODEL), images=np.zeros((1, 4, 4, 1)), noise_std=0.1)
    with pytest.raises(InputError, match=message):
        denoise(MODEL, **{**sound, **arguments})
