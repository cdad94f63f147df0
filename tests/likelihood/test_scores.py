import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax.data.dataset import ArraySplit
from tarflow_jax.flow import TarFlow
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.likelihood.scores import noisy_images, score_split
from tarflow_jax.parallel.mesh import make_mesh

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
        images = noisy_images(NOISE, batch, seed, draw)
        log_prob = MODEL.apply({'params': params}, images, batch['label'], method='log_prob')
        return -log_prob.mean() / 16

    return lambda seed, draw: float(mean_nats(seed, draw))


def evaluate(params, split, mesh, *, noise=NOISE, batch_size=4, num_draws=1, seed=0, **more):
    how = dict(batch_size=batch_size, num_draws=num_draws, seed=seed, **more)
    return score_split(MODEL, params, split, noise, mesh, **how)


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


UNIFORM = Noise('uniform', 0.0, num_levels=17)


@pytest.fixture(scope='module')
def log_probs(params, split):
    """Of every draw of every image, by hand, float64 [5, 13]."""
    batch = {**split.__getitems__(range(NUM_IMAGES)), 'index': np.arange(NUM_IMAGES)}

    @jax.jit
    def log_prob(draw):
        images = noisy_images(UNIFORM, batch, 0, draw)
        return MODEL.apply({'params': params}, images, batch['label'], method='log_prob')

    return np.array([log_prob(draw) for draw in range(5)], np.float64)


def test_the_importance_weighted_bound_and_the_errors(params, split, log_probs, one_device):
    scores = evaluate(params, split, one_device, noise=UNIFORM, num_draws=5)
    weighted = -np.log(np.exp(log_probs).mean(axis=0)) / 16
    assert scores['iw_bits_per_dim'] == pytest.approx(
        UNIFORM.bits_per_dim(weighted.mean()), abs=1e-6
    )
    for name, nats in ('bits_per_dim', -log_probs.mean(axis=0) / 16), ('iw_bits_per_dim', weighted):
        error = np.std(nats, ddof=1) / math.sqrt(NUM_IMAGES) / math.log(2)
        assert scores[f'{name}_error'] == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize('num_draws', [2, 16])
def test_several_draws_tighten_the_bound(params, split, one_device, num_draws):
    """Jensen's inequality holds for every set of draws."""
    scores = evaluate(params, split, one_device, noise=UNIFORM, num_draws=num_draws)
    assert scores['iw_bits_per_dim'] < scores['bits_per_dim'] - 1e-4


def test_one_draw_is_no_bound_of_its_own(params, split, one_device):
    scores = evaluate(params, split, one_device, noise=UNIFORM)
    assert scores['iw_bits_per_dim'] == pytest.approx(scores['bits_per_dim'], abs=1e-9)
    assert scores['iw_bits_per_dim_error'] == pytest.approx(scores['bits_per_dim_error'])


def test_one_image_has_no_error(params, one_device):
    one = ArraySplit(np.zeros((1, 4, 4, 1), np.uint8), np.zeros(1, np.int32))
    scores = evaluate(params, one, one_device)
    assert math.isnan(scores['bits_per_dim_error'])
    assert math.isfinite(scores['bits_per_dim'])


@pytest.mark.parametrize(('batch_size', 'data'), [(1, 1), (5, 1), (13, 1), (3, 8), (64, 4)])
def test_batches_and_devices_do_not_show(params, split, log_probs, batch_size, data):
    mesh = make_mesh(data=data, tensor=8 // data)
    scores = evaluate(params, split, mesh, noise=UNIFORM, batch_size=batch_size, num_draws=5)
    expected = UNIFORM.bits_per_dim(-log_probs.mean() / 16)
    assert scores['bits_per_dim'] == pytest.approx(expected, abs=1e-6)


def test_what_ends_a_pass_is_asked_before_every_batch(params, split, one_device):
    calls = []
    evaluate(params, split, one_device, before_batch=lambda: calls.append(None))
    assert len(calls) == 4

    def end():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(params, split, one_device, before_batch=end)
