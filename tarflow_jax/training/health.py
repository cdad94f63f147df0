"""Detects divergence: training is sound if its losses are about as low as they have been before.

A diverging run has useless parameters before the first number that is not finite, and a checkpoint
of them would replace a good one.
"""

import jax
import jax.numpy as jnp

# Largest sound loss above the best recent loss, in nats per dimension. A loss higher by 1 makes an
# image of D dimensions exp(D) times less likely; a whole training gains little more than that.
TOLERANCE = 1.0
RECENT_STEPS = 20  # the recent loss is about their mean
MAX_SKIPPED_IN_A_ROW = 20  # steps that are not finite, after which a run has diverged


def init() -> dict[str, jax.Array]:
    """The health before the first step: a running mean of the loss, and its lowest value."""
    return {'recent': jnp.zeros(()), 'best': jnp.full((), jnp.inf, jnp.float32)}


def update(health: dict[str, jax.Array], loss, finite, step) -> dict[str, jax.Array]:
    """The health after a step: a running mean of the loss, in which one outlier counts little."""
    recent, best = health['recent'], health['best']
    rate = jnp.maximum(1 / RECENT_STEPS, 1 / (step + 1.0))
    moved = recent + rate * (jnp.minimum(loss, best + 2 * TOLERANCE) - recent)
    recent = jnp.where(finite, jnp.where(jnp.isinf(best), loss, moved), recent)
    return {'recent': recent, 'best': jnp.where(finite, jnp.minimum(best, recent), best)}


def is_sound(health: dict[str, jax.Array], loss, finite) -> jax.Array:
    """Whether a step's loss is such that the state after it may be kept."""
    return finite & (loss <= health['best'] + TOLERANCE)


def has_diverged(health: dict[str, jax.Array]) -> jax.Array:
    """Whether most of the recent losses are far above the best."""
    return health['recent'] > health['best'] + TOLERANCE
