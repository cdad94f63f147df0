import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax.data.sources import ArraySplit
from tarflow_jax.evaluation import likelihood
from tarflow_jax.flow import TarFlow
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.training.objective import Noise

MODEL = TarFlow((4, 4, 1), 2, width=8, head_dim=4, num_blocks=2, layers_per_block=1, num_classes=3)
NOISE = Noise('gaussian', 0.1, num_levels=17)
NUM_IMAGES = 13


@pytest.fixture(scope='module')
def params(random_params):
    return random_params(MODEL)


@pytest.fixture(scope='module')
def split():
    draws = np.random.default_rng(0)
    images = draws.integers(0, 17, (NUM_IMAGES, 4, 4, 1)).astype(np.uint8)
    return ArraySplit(images, draws.integers(0, 3, NUM_IMAGES).astype(np.int32))


@pytest.fixture(scope='module')
def nats_by_hand(params, split):
    """Nats per dimension of a draw of the noise for the whole split at once."""
    batch = {**split.__getitems__(range(NUM_IMAGES)), 'index': np.arange(NUM_IMAGES)}

    @jax.jit
    def mean_nats(seed, draw):
        images = likelihood.noisy_images(NOISE, batch, seed, draw)
        log_prob = MODEL.apply({'params': params}, images, batch['label'], method='log_prob')
        return -log_prob.mean() / 16

    return lambda seed, draw: float(mean_nats(seed, draw))


def evaluate(params, split, mesh, *, noise=NOISE, batch_size=4, num_draws=1, seed=0):
    return likelihood.evaluate(
        MODEL, params, split, noise, mesh, batch_size=batch_size, num_draws=num_draws, seed=seed
    )


def test_every_image_counts_exactly_once(params, split, one_device):
    """An identity model has the pixels' own normal density; the noise is next to none."""
    proj_out = jax.tree.map(jnp.zeros_like, params['blocks']['proj_out'])
    identity = {'blocks': {**params['blocks'], 'proj_out': proj_out}}
    scores = evaluate(identity, split, one_device, noise=Noise('gaussian', 1e-6, num_levels=17))
    pixels = split.__getitems__(range(NUM_IMAGES))['image'] / 8 - 1
    expected = np.mean(pixels**2) / 2 + math.log(2 * math.pi) / 2
    assert scores['nats_per_dim'] == pytest.approx(expected, abs=1e-6)
    assert scores['bits_per_dim'] == pytest.approx((expected + math.log(8.5)) / math.log(2))


@pytest.mark.parametrize('batch_size', [4, NUM_IMAGES, 1000])
def test_the_batch_size_does_not_change_the_score(
    params, split, nats_by_hand, one_device, batch_size
):
    scores = evaluate(params, split, one_device, batch_size=batch_size)
    assert scores['nats_per_dim'] == pytest.approx(nats_by_hand(0, 0), abs=1e-6)


def test_many_devices_score_as_one(params, split, nats_by_hand):
    scores = evaluate(params, split, make_mesh(data=2, fsdp=4), batch_size=3)
    assert scores['nats_per_dim'] == pytest.approx(nats_by_hand(0, 0), abs=1e-6)


def test_draws_of_the_noise_are_averaged(params, split, nats_by_hand, one_device):
    draws = [nats_by_hand(0, draw) for draw in range(3)]
    assert len(set(draws)) == 3
    scores = evaluate(params, split, one_device, num_draws=3)
    assert scores['nats_per_dim'] == pytest.approx(np.mean(draws), abs=1e-6)


def test_the_seed_picks_the_noise(params, split, nats_by_hand, one_device):
    score = evaluate(params, split, one_device, seed=7)['nats_per_dim']
    assert score == pytest.approx(nats_by_hand(7, 0), abs=1e-6)
    assert score != pytest.approx(nats_by_hand(0, 0), abs=1e-6)
