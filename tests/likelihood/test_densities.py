"""The likelihood of given images is that of the model, and that of an evaluation."""

import numpy as np
import pytest
from flows import FLOWS

import tarflow_jax
from tarflow_jax.data.dataset import ArraySplit
from tarflow_jax.errors import InputError
from tarflow_jax.likelihood import scores
from tarflow_jax.likelihood.noise import Noise

MODEL = FLOWS['conditional']


@pytest.fixture
def params(random_params):
    return random_params(MODEL)


def test_log_prob_is_that_of_the_model(params, random_batch):
    images, labels = random_batch(MODEL)
    expected = MODEL.apply({'params': params}, images, labels, method='log_prob')
    log_prob = tarflow_jax.log_prob(MODEL, params, images, labels)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


def test_a_model_in_bfloat16_is_scored_in_float32(params, random_batch):
    images, labels = random_batch(MODEL)
    expected = tarflow_jax.log_prob(MODEL, params, images, labels)
    log_prob = tarflow_jax.log_prob(MODEL.clone(dtype='bfloat16'), params, images, labels)
    np.testing.assert_array_equal(log_prob, expected)


@pytest.mark.parametrize('noise', [Noise('uniform', 0, 17), Noise('gaussian', 0.1, 17)])
def test_the_mean_over_a_split_is_the_score_of_an_evaluation(params, one_device, noise):
    draws = np.random.default_rng(0)
    levels = draws.integers(0, 17, (7, *MODEL.image_shape)).astype(np.uint8)
    labels = draws.integers(0, 3, 7).astype(np.int32)
    expected = scores.score_split(
        *(MODEL, params, ArraySplit(levels, labels), noise, one_device),
        batch_size=4,
        num_draws=3,
        seed=5,
    )
    bits = tarflow_jax.bits_per_dim(MODEL, params, levels, labels, noise=noise, num_draws=3, seed=5)
    assert bits.shape == (7,)
    assert bits.mean() == pytest.approx(expected['bits_per_dim'], rel=1e-6)
    assert bits.std(ddof=1) / 7**0.5 == pytest.approx(expected['bits_per_dim_error'], rel=1e-4)


@pytest.mark.parametrize(
    ('levels', 'words'),
    [
        (np.full((1, *MODEL.image_shape), 17), r'levels must be whole numbers in 0\.\.16'),
        (np.full((1, *MODEL.image_shape), -1), r'levels must be whole numbers in 0\.\.16'),
        (np.zeros((1, *MODEL.image_shape)), r'levels must be whole numbers in 0\.\.16'),
        (np.zeros((1, 4, 4, 1), int), r'the model takes levels of shape \[batch, 4, 4, 2\]'),
    ],
)
def test_what_is_no_level_is_refused(params, levels, words):
    with pytest.raises(InputError, match=words):
        tarflow_jax.bits_per_dim(MODEL, params, levels, noise=Noise('uniform', 0, 17))


def test_a_noise_that_is_none_is_refused(params):
    levels = np.zeros((1, *MODEL.image_shape), np.uint8)
    with pytest.raises(InputError, match=r'noise must be a tarflow_jax.Noise, .*; got None'):
        tarflow_jax.bits_per_dim(MODEL, params, levels, noise=None)
    with pytest.raises(InputError, match='levels must be an array of numbers'):
        tarflow_jax.bits_per_dim(MODEL, params, [[1], [1, 2]], noise=Noise('uniform', 0, 256))
