import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tarflow_jax.errors import InputError
from tarflow_jax.training.optimizer import learning_rate_schedule, make_optimizer

PARAMS = {
    'proj_in': {'kernel': jnp.full((2, 3), 2.0), 'bias': jnp.full(3, 2.0)},
    'norm': {'scale': jnp.full(3, 2.0)},
    'pos_embed': jnp.full((4, 3), 2.0),
}


def first_update(gradients, *, weight_decay=0.0, clip_norm=0.0, **how):
    optimizer = make_optimizer(
        optax.constant_schedule(0.1),
        b1=0.9,
        b2=0.95,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        **how,
    )
    update = jax.jit(optimizer.update)
    updates, state = update(gradients, optimizer.init(PARAMS), PARAMS, step=0)
    return updates, state


def test_the_learning_rate_climbs_a_line_and_descends_a_cosine():
    rate = learning_rate_schedule(peak=1.0, final=0.01, warmup_steps=10, total_steps=110)
    assert rate(0) == pytest.approx(0.01)
    assert rate(5) == pytest.approx((0.01 + 1.0) / 2)
    assert rate(10) == pytest.approx(1.0)
    assert rate(60) == pytest.approx((0.01 + 1.0) / 2)
    assert rate(85) == pytest.approx(0.01 + 0.99 * (1 + math.cos(0.75 * math.pi)) / 2)
    assert rate(110) == pytest.approx(0.01)


def test_the_learning_rate_never_rises_again():
    rate = learning_rate_schedule(peak=1.0, final=0.01, warmup_steps=0, total_steps=50)
    rates = [float(rate(step)) for step in range(200)]
    assert rates[0] == pytest.approx(1.0)
    assert rates == sorted(rates, reverse=True)
    np.testing.assert_allclose(rates[50:], 0.01, rtol=1e-5)


@pytest.mark.parametrize('warmup_steps', [-1, 100, 101])
def test_a_warm_up_longer_than_the_training_is_refused(warmup_steps):
    message = f'warm-up of {warmup_steps} steps must be shorter than the training of 100 steps'
    with pytest.raises(InputError, match=message):
        learning_rate_schedule(peak=1, final=0, warmup_steps=warmup_steps, total_steps=100)


def test_only_kernels_decay():
    updates, _ = first_update(jax.tree.map(jnp.zeros_like, PARAMS), weight_decay=0.5)
    kernel = updates['proj_in'].pop('kernel')
    np.testing.assert_allclose(kernel, -0.1 * 0.5 * PARAMS['proj_in']['kernel'], rtol=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))


def test_gradients_are_clipped_by_their_common_norm():
    gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3.0), PARAMS)

    def first_moments(clip_norm):
        _, state = first_update(gradients, clip_norm=clip_norm)
        return optax.tree.get(state, 'mu')

    norm = float(optax.tree.norm(gradients))
    for clip_norm, factor in ((0.0, 1.0), (1.0, 1 / norm), (2 * norm, 1.0)):
        expected = jax.tree.map(lambda leaf, factor=factor: 0.1 * factor * leaf, gradients)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            first_moments(clip_norm),
            expected,
        )


def test_clipping_does_not_change_the_shape_of_the_state():
    gradients = jax.tree.map(jnp.zeros_like, PARAMS)
    _, clipped = first_update(gradients, clip_norm=1.0)
    _, free = first_update(gradients, clip_norm=0.0)
    assert jax.tree.structure(clipped) == jax.tree.structure(free)


def test_the_state_is_that_of_optax():
    """So that old checkpoints fit."""
    kernels = {'proj_in': {'kernel': True, 'bias': False}, 'norm': False, 'pos_embed': False}
    adamw = optax.adamw(optax.constant_schedule(0.1), mask=kernels)
    expected = optax.chain(optax.clip_by_global_norm(1.0), adamw).init(PARAMS)
    _, state = first_update(jax.tree.map(jnp.zeros_like, PARAMS))
    assert jax.tree.structure(state) == jax.tree.structure(expected)


def test_a_first_moment_of_half_the_size():
    gradients = jax.tree.map(lambda x: x * 0.37, PARAMS)
    expected, _ = first_update(gradients)
    updates, state = first_update(gradients, first_moment_dtype='bfloat16')
    adam = next(s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, 'mu')) if s.mu)
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.mu)} == {jnp.dtype('bfloat16')}
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.nu)} == {jnp.dtype('float32')}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)
