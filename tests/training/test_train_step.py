"""The one step of training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from tarflow_jax.flow import TarFlow
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.training import objective
from tarflow_jax.training.optimizer import make_optimizer
from tarflow_jax.training.state import TrainState, init_state
from tarflow_jax.training.train_step import accumulate, gradient_of_folded, make_train_step

SIZES = dict(image_shape=(4, 4, 1), patch_size=2, width=8, head_dim=4, layers_per_block=1)
MODEL = TarFlow(**SIZES, num_blocks=2, num_classes=3)
OPTIMIZER = make_optimizer(
    optax.constant_schedule(1e-2), b1=0.9, b2=0.95, weight_decay=1e-4, clip_norm=1.0
)
HOW = dict(seed=0, drop_label=0.1, random_flip=True, ema_decay=0.15, window_steps=3)
NOISE = Noise('gaussian', 0.1, num_levels=17)


def jit_train_step(**how):
    return jax.jit(make_train_step(MODEL, OPTIMIZER, NOISE, **{**HOW, **how}))


@pytest.fixture(scope='module')
def train_step():
    return jit_train_step()


@pytest.fixture(scope='module')
def new_state():
    return jax.jit(lambda key: init_state(key, MODEL, OPTIMIZER, ema=True))(jax.random.key(0))


@pytest.fixture(scope='module')
def batch():
    """Levels are float32 here, so that one of them can be infinite."""
    draws = np.random.default_rng(0)
    images = draws.integers(0, 17, (8, 4, 4, 1)).astype(np.float32)
    return {'image': images, 'label': draws.integers(0, 3, 8).astype(np.int32)}


@pytest.fixture
def broken_batch(batch):
    image = batch['image'].copy()
    image[0, 0, 0, 0] = np.inf
    return {**batch, 'image': image}


def take_steps(train_step, state, *batches):
    """The states and reports after each of some batches."""
    states, reports = [], []
    for batch in batches:
        state, report = train_step(state, batch)
        states.append(state)
        reports.append(jax.device_get(report))
    return states, reports


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_loss_goes_down(train_step, new_state, batch):
    _, reports = take_steps(train_step, new_state, *[batch] * 60)
    assert reports[-1]['loss'] < reports[0]['loss'] - 0.1
    assert reports[-1]['skipped'] == 0


def test_a_step_follows_from_state_and_batch_alone(train_step, new_state, batch):
    (first, second), _ = take_steps(train_step, new_state, batch, batch)
    assert_same(train_step(new_state, batch)[0], first)
    assert_same(train_step(first, batch)[0], second)
    assert second.step == 2


def test_a_new_training_compiles_its_step_once(new_state, batch):
    step = jit_train_step()
    for _ in range(2):
        new_state, _ = step(new_state, batch)
    assert step._cache_size() == 1


def test_every_step_has_noise_of_its_own(train_step, new_state, batch):
    later = dataclasses.replace(new_state, step=jnp.int32(3))
    _, now = train_step(new_state, batch)
    _, then = train_step(later, batch)
    assert now['loss'] != then['loss']


def test_the_report_has_means_over_the_window(train_step, new_state, batch):
    single_step = jit_train_step(window_steps=1)
    _, singles = take_steps(single_step, new_state, *[batch] * 5)
    _, means = take_steps(train_step, new_state, *[batch] * 5)
    for name in ('loss', 'grad_norm'):
        values = [single[name] for single in singles]
        expected = [np.mean(values[0:n]) for n in (1, 2, 3)]
        expected += [np.mean(values[3:n]) for n in (4, 5)]
        np.testing.assert_allclose([mean[name] for mean in means], expected, rtol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    train_step, new_state, batch, broken_batch
):
    batches = [batch, broken_batch, broken_batch, batch]
    (before, once, twice, after), reports = take_steps(train_step, new_state, *batches)
    for state in (once, twice):
        assert_same(
            (state.params, state.opt_state, state.ema_params),
            (before.params, before.opt_state, before.ema_params),
        )
    assert [report['skipped'] for report in reports] == [0, 1, 2, 2]
    assert [report['skipped_in_a_row'] for report in reports] == [0, 1, 2, 0]
    assert [int(state.step) for state in (before, once, twice, after)] == [1, 2, 3, 4]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    assert reports[1]['loss'] == reports[2]['loss'] == reports[0]['loss']  # the mean of the finite


def test_the_learning_rate_is_that_of_the_step_also_after_skipped_steps(
    new_state, batch, broken_batch
):
    optimizer = make_optimizer(
        lambda step: jnp.where(step == 3, 1e-2, 0.0), b1=0.9, b2=0.95, weight_decay=0, clip_norm=1.0
    )
    train_step = jax.jit(make_train_step(MODEL, optimizer, NOISE, **HOW))
    batches = [batch, broken_batch, broken_batch, batch, batch]
    (first, _, third, fourth, fifth), _ = take_steps(train_step, new_state, *batches)
    assert_same(first.params, new_state.params)
    assert_same(third.params, new_state.params)
    changed = jax.tree.map(lambda a, b: (a != b).any(), fourth.params, new_state.params)
    assert any(jax.tree.leaves(changed))
    assert_same(fifth.params, fourth.params)
    assert optax.tree.get_all_with_path(fifth.opt_state, 'count')[0][1] == 3  # Adam's updates


def test_every_restart_multiplies_the_learning_rate(new_state, batch):
    train_step = jit_train_step(restart_factor=0.5)
    later = dataclasses.replace(new_state, restarts=jnp.int32(2))
    (slow,), _ = take_steps(train_step, later, batch)
    (fast,), _ = take_steps(train_step, new_state, batch)
    jax.tree.map(
        lambda start, a, b: np.testing.assert_allclose(a - start, (b - start) / 4, atol=1e-7),
        *(new_state.params, slow.params, fast.params),
    )


def test_the_moving_average_forgets_faster_at_first(train_step, new_state, batch):
    states, _ = take_steps(train_step, new_state, *[batch] * 3)
    ema = new_state.params
    for step, state in enumerate(states):
        decay = min(HOW['ema_decay'], (1 + step) / (10 + step))
        ema = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, ema, state.params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema_params, ema
        )


def test_a_volume_preserving_model_tracks_the_variance_of_its_latents():
    """A new model's latents are its images, here without noise to speak of."""
    model = TarFlow(**SIZES, num_blocks=2, volume_preserving=True)
    how = dict(seed=0, drop_label=0.0, random_flip=False, ema_decay=0.0, window_steps=1)
    noise = Noise('gaussian', 1e-6, num_levels=17)
    train_step = jax.jit(make_train_step(model, optax.sgd(0.0), noise, **how))
    init = jax.jit(lambda key: init_state(key, model, optax.sgd(0.0), ema=False))
    state = init(jax.random.key(0))
    draws = np.random.default_rng(0)
    prior_var = np.ones(model.image_shape)
    for _ in range(2):
        levels = draws.integers(0, 17, (8, *model.image_shape)).astype(np.uint8)
        state, _ = train_step(state, {'image': levels, 'label': np.full(8, -1, np.int32)})
        prior_var += 0.1 * (np.mean((levels / 8 - 1) ** 2, axis=0) - prior_var)
        np.testing.assert_allclose(state.params['prior_var'], prior_var, atol=1e-5)


@pytest.mark.parametrize('ema', [False, True])
def test_a_state_is_put_together_from_its_items(ema):
    state = jax.eval_shape(
        lambda key: init_state(key, MODEL, OPTIMIZER, ema=ema), jax.random.key(0)
    )
    items = state.to_items()
    assert ('ema_params' in items) == ema
    assert TrainState.from_items(items) == state


def test_samples_are_drawn_with_the_moving_average_where_there_is_one(new_state):
    assert new_state.sampling_params is new_state.ema_params
    without = dataclasses.replace(new_state, ema_params=None)
    assert without.sampling_params is new_state.params


def test_gradients_in_bfloat16_are_as_exact_with_norms_folded(random_params, random_batch):
    images, labels = random_batch(MODEL, batch=8)
    params = random_params(MODEL)

    def gradient_of(model, folded):
        def loss(params, images, labels):
            nats, _ = objective.negative_log_likelihood(model, params, images, labels)
            return nats.mean(), 0.0

        def cast(params):
            return {**params, 'blocks': model.token_flow().block().cast(params['blocks'])}

        gradient = accumulate(jax.value_and_grad(loss, has_aux=True), microbatches=2)
        gradient = gradient_of_folded(gradient, cast) if folded else gradient
        _, grads = jax.jit(gradient)(params, images, labels)
        assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype('float32')}
        return ravel_pytree(grads)[0]

    exact = gradient_of(MODEL, False)
    rounded = MODEL.clone(dtype='bfloat16')
    plain, folded = (jnp.linalg.norm(gradient_of(rounded, way) - exact) for way in (False, True))
    assert 0 < folded < 1.5 * plain < 0.03 * jnp.linalg.norm(exact)
    np.testing.assert_allclose(gradient_of(MODEL, True), exact, atol=1e-4)


def test_folded_parameters_that_are_collected_once_a_step_are_rounded_once(
    new_state, batch, random_params
):
    state = dataclasses.replace(new_state, params=random_params(MODEL))  # scales that are not 1
    rounded = MODEL.clone(dtype='bfloat16')
    with rules.activation_sharding(make_mesh(devices=jax.devices()[:1])):
        once, by_layer = (
            jax.jit(make_train_step(rounded, OPTIMIZER, NOISE, **HOW, folded=True, gather=gather))(
                state, batch
            )[0]
            for gather in ('step', 'layer')
        )
    assert_same(once.params, by_layer.params)


def test_a_window_of_skipped_steps_has_no_mean(new_state, broken_batch):
    _, report = jit_train_step(window_steps=1)(new_state, broken_batch)
    assert np.isnan([report['loss'], report['grad_norm']]).all()


def test_where_jax_takes_64_bits_a_training_is_the_same(new_state, batch):
    expected, _ = jit_train_step()(new_state, batch)
    with jax.enable_x64(True):
        state = init_state(jax.random.key(0), MODEL, OPTIMIZER, ema=True)
        assert_same(state.params, new_state.params)
        state, _ = jit_train_step()(new_state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, expected)
