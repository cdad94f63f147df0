"""Fixed points of blocks are what the sequential sampler gives, whatever the guess."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax import sample
from tarflow_jax.errors import InputError
from tarflow_jax.flow import TarFlow
from tarflow_jax.sampling import inverse as chain
from tarflow_jax.sampling import parallel
from tarflow_jax.sampling.batches import sample_batches
from tarflow_jax.sampling.parallel import Calibration

SIZES = dict(width=8, head_dim=4, layers_per_block=1)
MODEL = TarFlow((8, 8, 1), 2, num_blocks=2, num_classes=3, **SIZES)
WINDOWS = (1, 2, 5, 15, 100)  # of 16 tokens


@pytest.fixture(scope='module')
def params(random_params):
    return random_params(MODEL)


def calibration_of(model, window, seed=None):
    """Windows of one size; with a seed, with linear models that are far from any truth."""
    default = Calibration.default(model.token_flow(), window)
    if seed is None:
        return default
    draws = np.random.default_rng(seed)
    blocks, dim = default.offset.shape
    response, gain = (jnp.float32(draws.normal(size=(blocks, lags * dim, dim))) for lags in (3, 4))
    return dataclasses.replace(default, response=response, gain=gain)


def test_without_tolerance_images_are_those_of_the_sequential_sampler(flow, random_batch):
    model, params = flow
    noise, labels = random_batch(model)
    expected = sample(model, params, noise, labels)
    windows = calibration_of(model, 3)
    images = sample(model, params, noise, labels, tolerance=0, calibration=windows)
    np.testing.assert_allclose(images, expected, atol=1e-5)


@pytest.mark.parametrize('window', WINDOWS)
def test_guided_images_are_those_of_the_sequential_sampler(window, params, random_batch):
    noise, labels = random_batch(MODEL)
    guidance = dict(guidance=1.0, anneal_guidance=True, attention_temperature=0.8)
    expected = sample(MODEL, params, noise, labels, **guidance)
    windows = calibration_of(MODEL, window)
    images = sample(MODEL, params, noise, labels, tolerance=0, calibration=windows, **guidance)
    np.testing.assert_allclose(images, expected, atol=1e-5)


@pytest.mark.parametrize('tolerance', [0, 1e-2])
def test_a_wrong_linear_model_changes_nothing(tolerance, params, random_batch):
    noise, labels = random_batch(MODEL)
    expected = sample(MODEL, params, noise, labels)
    images, residual = sample(
        *(MODEL, params, noise, labels),
        tolerance=tolerance,
        calibration=calibration_of(MODEL, 5, seed=0),
        return_residual=True,
    )
    np.testing.assert_allclose(images, expected, atol=10 * tolerance + 1e-5)
    assert (residual <= tolerance + 1e-5).all()


@pytest.mark.parametrize('window', [7, 15])
def test_a_window_shrinks_with_what_is_left(window, params, random_batch, monkeypatch):
    monkeypatch.setattr(parallel, 'MIN_STEPS', 4)  # four parts of the 15 steps
    noise, labels = random_batch(MODEL)
    noise[1, 2, 2] = np.inf
    tokens = MODEL.patchify(noise)
    solve = jax.jit(functools.partial(chain.inverse, MODEL.token_flow()))
    expected = solve(params, tokens, labels)
    solution = solve(params, tokens, labels, calibration=calibration_of(MODEL, window, seed=0))
    finite = np.array([0, 2, 3])
    assert not np.isfinite(solution.tokens[0, 1]).all()
    np.testing.assert_allclose(solution.tokens[0, finite], expected.tokens[0, finite], atol=1e-5)
    assert (solution.evaluations < window * solution.sweeps).all()
    np.testing.assert_array_equal(expected.evaluations, 15)


def test_the_residual_is_that_of_the_equation(params, random_batch):
    """Of one block: x_t - z_t exp(log_scale_t) - shift_t is (f(x) - z)_t exp(log_scale_t)."""
    model = TarFlow((8, 8, 1), 2, num_blocks=1, num_classes=3, volume_preserving=True, **SIZES)
    only_first = jax.tree.map(lambda x: x[:1], params['blocks'])
    head = only_first['proj_out']
    only_first['proj_out'] = jax.tree.map(lambda x: x[..., :1, :], head)
    vp_params = {'blocks': only_first, 'prior_var': jnp.ones(model.image_shape)}
    noise, labels = random_batch(model)
    settings = dict(tolerance=3e-2, calibration=calibration_of(model, 15), return_residual=True)
    images, residual = sample(model, vp_params, noise, labels, **settings)
    latents, _ = model.apply({'params': vp_params}, images, labels)
    # Without log_scale, the residual of the equation is that of the latents.
    np.testing.assert_allclose(np.abs(latents - noise).max(axis=(1, 2, 3)), residual, atol=1e-6)
    assert (residual > 1e-4).all()


def test_a_tolerance_saves_sweeps_and_bounds_the_residual(params, random_batch):
    noise, labels = random_batch(MODEL)
    flow = MODEL.token_flow()

    @functools.partial(jax.jit, static_argnums=0)
    def solve(window, tolerance):
        windows = calibration_of(MODEL, window)
        return chain.inverse(
            *(flow, params, MODEL.patchify(noise), labels),
            calibration=windows,
            tolerance=tolerance,
            certify=True,
        )

    exact, near = solve(15, 0.0), solve(15, 1e-2)
    assert (near.sweeps < exact.sweeps).all()
    assert (exact.sweeps <= flow.num_tokens - 1).all()
    assert (near.residual <= 1e-2 + 1e-5).all()
    assert (near.residual.max(axis=1) > 1e-4).all()
    assert not near.resolved.any()
    assert (solve(5, 1e-2).sweeps > near.sweeps).all()


def test_amplification_divides_the_tolerance(params, random_batch):
    noise, labels = random_batch(MODEL)
    calibration = calibration_of(MODEL, 15)
    wide = dataclasses.replace(calibration, amplification=jnp.full(2, 100.0))
    arguments = dict(tolerance=1e-2, return_residual=True)
    _, residual = sample(MODEL, params, noise, labels, calibration=wide, **arguments)
    assert (residual <= 1e-4 + 1e-5).all()


def test_what_is_not_finite_stays_so_and_disturbs_no_other(params, random_batch):
    noise, labels = random_batch(MODEL)
    calibration = calibration_of(MODEL, 5)
    expected = sample(MODEL, params, noise, labels, tolerance=0, calibration=calibration)
    noise[1, 2, 2] = np.inf
    images = sample(MODEL, params, noise, labels, tolerance=0, calibration=calibration)
    assert not np.isfinite(images[1]).all()
    np.testing.assert_allclose(np.delete(images, 1, 0), np.delete(expected, 1, 0), atol=1e-6)


@pytest.fixture
def wrong_in_one_row(monkeypatch):
    """Windows leave an error in one token of the third sample."""

    def solve(step, z_BTP, *args):
        x_BTP, *counts = parallel.solve_in_windows(step, z_BTP, *args)
        return x_BTP.at[2, 7].add(1.0), *counts

    monkeypatch.setattr(chain, 'solve_in_windows', solve)


def test_what_is_above_the_tolerance_is_solved_again_alone(params, random_batch, wrong_in_one_row):
    noise, labels = random_batch(MODEL)
    flow, tokens = MODEL.token_flow(), MODEL.patchify(noise)
    solution = jax.jit(functools.partial(chain.inverse, flow, certify=True, tolerance=1e-3))(
        params, tokens, labels, calibration=calibration_of(MODEL, 5)
    )
    np.testing.assert_array_equal(solution.resolved, [[False, False, True, False]] * 2)
    assert (solution.residual < 2e-3).all()
    expected = MODEL.patchify(sample(MODEL, params, noise, labels))
    np.testing.assert_allclose(solution.tokens[0], expected, atol=1e-2)


def test_samples_that_were_solved_again_are_counted(params, one_device, wrong_in_one_row):
    settings = dict(num_samples=6, batch_size=4, seed=0)
    parallel_ones = dict(method='parallel', certify=True)
    batches = list(sample_batches(MODEL, params, one_device, **settings, **parallel_ones))
    assert [batch.resolved.tolist() for batch in batches] == [[False, False, True, False]] * 2
    assert max(batch.residual.max() for batch in batches) < 2e-3
    expected = sample_batches(MODEL, params, one_device, **settings)
    for batch, sequential in zip(batches, expected, strict=True):
        assert sequential.residual is None
        np.testing.assert_allclose(batch.images, sequential.images, atol=1e-2)


def test_methods(params, random_batch):
    noise, labels = random_batch(MODEL)
    calibration = calibration_of(MODEL, 5)
    draw = functools.partial(sample, MODEL, params, noise, labels)
    sequential = draw(method='sequential')
    np.testing.assert_array_equal(draw(), sequential)
    np.testing.assert_array_equal(draw(method='sequential', calibration=calibration), sequential)
    assert (draw(calibration=calibration) != sequential).any()
    np.testing.assert_allclose(draw(method='parallel'), sequential, atol=1e-2)
    images, residual, resolved = draw(return_residual=True, return_resolved=True)
    np.testing.assert_array_equal(images, sequential)
    assert (residual < 1e-5).all()
    assert not resolved.any()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(method='jacobi'), 'one of auto, sequential, parallel'),
        (dict(tolerance=-1e-3), 'at least 0; got -0.001'),
        (dict(tolerance=2), 'at most 1; got 2'),
        (dict(return_residual=1), 'must be True or False; got 1'),
        (
            dict(calibration=Calibration.default(MODEL.clone(num_blocks=3).token_flow())),
            'calibration is for 3 blocks with tokens of 4 features; the model has 2 with 4',
        ),
        *(
            (
                dict(calibration=dataclasses.replace(calibration_of(MODEL, 3), windows=windows)),
                words,
            )
            for windows, words in {
                (3,): 'calibration.windows must be a tuple of 2',
                (3, 3, 3): 'calibration.windows must be a tuple of 2',
                (3, 2.5): 'a window of the calibration must be a whole number',
                (3, 0): 'a window of the calibration must be at least 1',
            }.items()
        ),
    ],
)
def test_refused(arguments, message, params, random_batch):
    noise, labels = random_batch(MODEL)
    with pytest.raises(InputError, match=message):
        sample(MODEL, params, noise, labels, **arguments)


def test_where_jax_takes_64_bits(params, random_batch):
    noise, labels = random_batch(MODEL)
    expected = sample(MODEL, params, noise, labels, method='parallel')
    with jax.enable_x64(True):
        images = sample(MODEL, params, noise, labels, method='parallel')
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-4)
