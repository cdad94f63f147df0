"""The inverse of the whole flow: each block solved for its input, from the last to the first."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tarflow_jax.flow.inputs import as_batch, as_labels
from tarflow_jax.flow.tokens import TokenFlow, reorder
from tarflow_jax.parallel import rules
from tarflow_jax.sampling.guidance import NO_GUIDANCE, Guidance
from tarflow_jax.sampling.parallel import Calibration, residual, solve_in_windows
from tarflow_jax.sampling.sequential import GuidedStep, solve_sequentially

# Residuals of sequential solutions, which are exact but for rounding, by the layers' dtype.
ROUNDING = {'float32': 1e-5, 'bfloat16': 1e-2}


class Solution(NamedTuple):
    """The inverse, and how it was found, by block from the first of the flow to the last.

    Attributes:
      tokens: the input of each block, float32 [X, B, T, P] in the order of the data; the first is
        the data.
      sweeps: passes over a token or a window, int32 [X].
      evaluations: tokens in all these passes, int32 [X].
      residual: max |x - G(x)| over the tokens of each sample, float32 [X, B]; NaN without a
        certificate.
      resolved: whether the residual was above the tolerance, so that the sample was solved again
        token by token, bool [X, B].
    """

    tokens: jax.Array
    sweeps: jax.Array
    evaluations: jax.Array
    residual: jax.Array
    resolved: jax.Array


def inverse(
    flow: TokenFlow,
    params,
    latents,
    labels=None,
    guidance: Guidance = NO_GUIDANCE,
    calibration: Calibration | None = None,
    tolerance=0.0,
    certify: bool = False,
) -> Solution:
    """Maps latents to tokens.

    Args:
      flow: the flow, of any front end.
      params: its parameters; entries other than `blocks` are ignored.
      latents: float32 [B, T, P], as `flow.forward` returns them.
      labels: int32 [B], -1 for no label; None for no labels.
      guidance: none by default, which gives the inverse of `flow.forward`.
      calibration: how each block is solved, by default token by token.
      tolerance: largest error of the result, as the calibration's amplifications tell.
      certify: whether a pass over each block's whole solution measures its residual, and what is
        above the tolerance is solved again.
    """
    latents = as_batch('latents', latents, (flow.num_tokens, flow.token_dim))
    labels = as_labels(labels, len(latents), flow.num_classes)
    block = flow.block()
    calibration = calibration or Calibration.default(flow, window=1)

    @jax.named_scope('inverse_block')
    def invert(window, z_BTP, inputs):
        block_params, linear, amplification = inputs
        block_params = rules.gathered(block.cast(block_params), of_block=True)
        step = GuidedStep(block, block_params, labels, guidance)
        x_BTP, *how = _solve(
            step, z_BTP[:, ::-1], linear, window, tolerance / amplification, certify
        )
        return x_BTP, Solution(x_BTP, *how)

    linear = calibration.response, calibration.gain, calibration.offset
    inputs = params['blocks'], linear, calibration.amplification
    z_BTP, solutions, end = reorder(latents, flow.num_blocks), [], flow.num_blocks
    for window, group in itertools.groupby(reversed(calibration.windows)):
        first = end - len(list(group))
        solve_group = functools.partial(invert, max(1, min(window, flow.num_tokens - 1)))
        group_inputs = jax.tree.map(lambda x: x[first:end], inputs)  # noqa: B023 (called at once)
        z_BTP, solution = jax.lax.scan(solve_group, z_BTP, group_inputs, reverse=True)
        solutions.insert(0, solution)
        end = first
    solution = jax.tree.map(lambda *x: jnp.concatenate(x), *solutions)
    in_order = [reorder(x_BTP, depth) for depth, x_BTP in enumerate(solution.tokens)]
    return solution._replace(tokens=jnp.stack(in_order))


def solve_block(step: GuidedStep, z_BTP, linear, window: int, tolerance):
    """Solves a block token by token if the window is 1; see `solve_in_windows`."""
    if window > 1:
        return solve_in_windows(step, z_BTP, linear, window, tolerance)
    num_steps = jnp.int32(z_BTP.shape[1] - 1)
    return solve_sequentially(step, z_BTP), num_steps, num_steps


def _solve(step: GuidedStep, z_BTP, linear, window: int, tolerance, certify: bool):
    """A block's `Solution`, field by field."""
    x_BTP, *counts = solve_block(step, z_BTP, linear, window, tolerance)
    none_failed_B = jnp.zeros(len(z_BTP), bool)
    if not certify:
        return x_BTP, *counts, jnp.full(len(z_BTP), jnp.nan), none_failed_B
    residual_B = residual(step, x_BTP, z_BTP)
    if window == 1:
        return x_BTP, *counts, residual_B, none_failed_B
    failed_B = ~(residual_B <= tolerance + ROUNDING[jnp.dtype(step.dtype).name])

    def solve_again():
        again_BTP = jnp.where(failed_B[:, None, None], solve_sequentially(step, z_BTP), x_BTP)
        return again_BTP, residual(step, again_BTP, z_BTP)

    x_BTP, residual_B = jax.lax.cond(failed_B.any(), solve_again, lambda: (x_BTP, residual_B))
    return x_BTP, *counts, residual_B, failed_B
