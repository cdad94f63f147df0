"""The inverse of the flow by fixed points, a window of tokens at a time.

The inverse of a block is the fixed point of

    G(x)_{t+1} = z_{t+1} exp(log_scale_t(x_<=t)) + shift_t(x_<=t),   G(x)_0 = z_0.

`G` is causal. A window of W tokens is updated together until its first tokens no longer change;
those are committed, with the keys and values of the same iterate in the cache, and the window moves
on. The token after the committed ones depends only on them, so each sweep commits at least one
token: poor guesses of the other tokens in the window cost time, but no accuracy. W = 1 is the
sequential sampler, W = T the Jacobi iteration of a whole block.

A sweep is a quasi-Newton step. The effect of a token's residual r = G(x) - x on the tokens after it
is nearly the same for all tokens and samples of a block. A calibration therefore measures it once,
as matrices M_k for a few lags, and the step anticipates it:

    x_t <- G(x)_t + sum_k r_{t-k} M_k.

Where M is zero, it is Jacobi's. The first guess is linear in the latents, sum_k z_{t-k} N_k + c.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from tarflow_jax.flow.attention import causal_parts
from tarflow_jax.flow.tokens import TokenFlow
from tarflow_jax.sampling.sequential import MIN_STEPS, GuidedStep

WINDOW = 16  # of a model that was not calibrated
MAX_GUESS = 100.0  # of the iterates that are not committed; pixels lie in [-1, 1]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['response', 'gain', 'offset', 'amplification'],
    meta_fields=['windows'],
)
@dataclasses.dataclass(frozen=True)
class Calibration:
    """How each block is solved, from the first of the flow to the last.

    Attributes:
      windows: tokens of a window, for each block; 1 solves token by token.
      response: M_1, M_2, ..., one below the other, float32 [X, K P, P].
      gain: N_0, N_1, ..., float32 [X, L P, P].
      offset: c, float32 [X, P].
      amplification: largest error of an image by a residual of 1 in the block, float32 [X], by
        which the block's tolerance is smaller than that of the image.
    """

    windows: tuple[int, ...]
    response: Any  # NumPy or JAX
    gain: Any
    offset: Any
    amplification: Any

    @classmethod
    def default(cls, flow: TokenFlow, window: int = WINDOW) -> 'Calibration':
        """Windows of one size, latents as the first guess, and Jacobi's step."""
        blocks, dim = flow.num_blocks, flow.token_dim
        gain = jnp.tile(jnp.eye(dim, dtype=jnp.float32)[None], (blocks, 1, 1))
        offset, amplification = jnp.zeros((blocks, dim), jnp.float32), jnp.ones(blocks, jnp.float32)
        response = jnp.zeros((blocks, 0, dim), jnp.float32)
        return cls((window,) * blocks, response, gain, offset, amplification)


def solve_in_windows(step: GuidedStep, z_BTP, linear, window: int, tolerance):
    """Solves a block for its input.

    Args:
      step: the block's map.
      z_BTP: its latents.
      linear: response, gain and offset of the block, see `Calibration`.
      window: tokens of a window, 1 to T - 1. It shrinks with what is left of the sequence.
      tolerance: largest |x - G(x)| of a token that is committed.

    Returns:
      (x_BTP, number of sweeps, number of tokens in all their windows).
    """
    num_tokens, dim = z_BTP.shape[1:]
    num_steps = num_tokens - 1
    response, gain, offset = linear
    num_lags = len(response) // dim
    first_guess = jnp.matmul(lagged(z_BTP, range(len(gain) // dim)), gain) + offset[None, None]
    first_guess = first_guess.at[:, 0].set(z_BTP[:, 0])

    @jax.named_scope('inverse_sweep')
    def sweep(state, size):
        position, x_BTP, caches, num_sweeps, num_evaluated = state
        reach = size + num_lags  # of the tokens that a sweep changes
        start = jnp.minimum(position, num_steps - size)
        old_BTP = _slice(x_BTP, start, reach + 1)
        z_BWP = _slice(z_BTP, start + 1, size)
        new_BWP, caches = step(old_BTP[:, :size], z_BWP, start, caches)
        error_BWP = new_BWP - old_BTP[:, 1 : size + 1]
        is_committed_W = start + 1 + jnp.arange(size) <= position
        last_BP = _slice(x_BTP, position, 1)[:, 0]
        settled = _num_settled(error_BWP, is_committed_W, last_BP, tolerance)
        # Settled tokens stay as the cache has them, the next one is exact, the others are guesses.
        order_1T1 = (jnp.arange(reach) - settled)[None, :, None]
        error_BTP = _pad(error_BWP, num_lags)
        finite_BTP = jnp.where(jnp.isfinite(error_BTP), error_BTP, 0)
        error_BTP = jnp.select([order_1T1 < 0, order_1T1 > 0], [0, finite_BTP], error_BTP)
        new_BTP = old_BTP[:, 1:] + error_BTP
        if num_lags:
            predicted_BTP = jnp.matmul(lagged(error_BTP, range(1, num_lags + 1)), response)
            new_BTP = jnp.where(order_1T1 > 0, new_BTP + predicted_BTP, new_BTP)
        new_BTP = jnp.where(order_1T1 > 0, jnp.clip(new_BTP, -MAX_GUESS, MAX_GUESS), new_BTP)
        x_BTP = _write(x_BTP, new_BTP, start + 1)
        position = start + settled + 1
        return position, x_BTP, caches, num_sweeps + 1, num_evaluated + size

    x_BTP = _pad(first_guess, num_lags)  # the response reaches beyond the sequence
    state: Any = jnp.int32(0), x_BTP, (), jnp.int32(0), jnp.int32(0)
    for first, end in causal_parts(num_steps, MIN_STEPS):
        size = min(window, num_steps - first)
        position, x_BTP, caches, *counts = state
        caches = step.padded_to(caches, min(end + size - 1, num_steps))
        state = jax.lax.while_loop(
            lambda state, end=end: state[0] < end,
            functools.partial(sweep, size=size),
            (position, x_BTP, caches, *counts),
        )
    _, x_BTP, _, num_sweeps, num_evaluated = state
    return x_BTP[:, :num_tokens], num_sweeps, num_evaluated


def _num_settled(error_BWP, is_committed_W, last_BP, tolerance):
    """Returns how many tokens after the window's first are settled in every sample of the batch.

    Args:
      error_BWP: G(x) - x of the tokens that follow those of the window.
      is_committed_W: which of them are settled from earlier sweeps.
      last_BP: the last token that is.
      tolerance: the largest error of a settled token.
    """
    is_settled_BW = jnp.abs(error_BWP).max(axis=2) <= tolerance
    # Tokens of a sample that is not finite never settle, and must not hold up the batch.
    is_nonfinite_B = ~jnp.isfinite(last_BP).all(axis=1)
    is_settled_W = (is_settled_BW | is_nonfinite_B[:, None]).all(axis=0) | is_committed_W
    # The last prediction is of a token outside the window, whose keys are not in the cache.
    return jnp.cumprod(is_settled_W[:-1].astype(jnp.int32)).sum(dtype=jnp.int32)


def apply_map(step: GuidedStep, x_BTP, z_BTP):
    """G(x), by one pass over all tokens: each of them as the map makes it of those before it."""
    caches = step.padded_to((), x_BTP.shape[1] - 1)
    after_BTP, _ = step(x_BTP[:, :-1], z_BTP[:, 1:], jnp.int32(0), caches)
    return jnp.concatenate([z_BTP[:, :1], after_BTP], axis=1)


def residual(step: GuidedStep, x_BTP, z_BTP):
    """max |x - G(x)| of each sample [B]."""
    return jnp.abs(x_BTP - apply_map(step, x_BTP, z_BTP)).max(axis=(1, 2))


def lagged(x_BTP, lags):
    """The tokens `lags` before each one, side by side [B, T, lags P]; zeros before the first."""
    length = x_BTP.shape[1]
    return jnp.concatenate(
        [jnp.pad(x_BTP, ((0, 0), (lag, 0), (0, 0)))[:, :length] for lag in lags], axis=2
    )


def _pad(x_BTP, length):
    return jnp.pad(x_BTP, ((0, 0), (0, length), (0, 0)))


def _slice(x_BTP, start, length):
    return jax.lax.dynamic_slice_in_dim(x_BTP, start, length, axis=1)


def _write(x_BTP, tokens_BTP, start):
    return jax.lax.dynamic_update_slice_in_dim(x_BTP, tokens_BTP, start, axis=1)
