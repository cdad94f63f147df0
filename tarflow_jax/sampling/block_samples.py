"""Samples with the latents and the input of each block, and what is fitted and measured on them."""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.flow.tokens import TokenFlow, reorder
from tarflow_jax.parallel import arrays, distributed, rules
from tarflow_jax.parallel.mesh import padded_batch_size
from tarflow_jax.sampling.batches import draw_noise
from tarflow_jax.sampling.labels import spread_labels
from tarflow_jax.sampling.parallel import lagged, solve_in_windows
from tarflow_jax.sampling.sample import scale_noise
from tarflow_jax.sampling.sequential import GuidedStep, solve_sequentially

JACOBI_SWEEPS = 10  # at most; fits to fewer were seen to be unstable in hard blocks
REFITS, REFITTED_SWEEPS = 3, 5
LAGS = range(1, 4)  # of the response
RESPONSE_RIDGE = 0.1  # relative to the mean square of what it is fitted to
GAIN_LAGS = 4
GAIN_RIDGE = 1e-4
SEED = 2**31 - 2  # of the noise: other samples than a user's first ones


class BlockSamples:
    """Samples drawn token by token, with the latents and the input of each block.

    Attributes:
      latents: float32 [B, T, P] of each block that was solved, in its own order of tokens; of the
        last `solved_blocks` of the flow, or of all.
      tokens: its input.
    """

    def __init__(
        self,
        model,
        params,
        mesh,
        labels,
        prior_temperature,
        guidance,
        number,
        *,
        before_block,
        solved_blocks=None,
    ):
        self._flow, self._params, self._guidance = model.token_flow(), params, guidance
        self._mesh, self._before_block = mesh, before_block
        size = padded_batch_size(number, number, mesh)
        all_labels = spread_labels(labels, size, model.num_classes, SEED)
        if all_labels is None:
            all_labels = np.full(size, -1, np.int32)
        rows = arrays.local_rows(mesh, size)
        local = np.arange(size, dtype=np.int32)[rows], all_labels[rows]
        index, self._labels = arrays.put_rows(local, mesh, size, rows)
        z_BTP = _draw_latents(model, params, index, prior_temperature)
        z_BTP = reorder(z_BTP, self._flow.num_blocks)
        self.latents, self.tokens = [], []
        for block in list(reversed(range(self._flow.num_blocks)))[:solved_blocks]:
            self.latents.insert(0, z_BTP[:, ::-1])
            z_BTP = self.solve(block, self.latents[0])
            self.tokens.insert(0, z_BTP)

    def first(self, number: int) -> 'BlockSamples':
        """The first samples, at least this number and as many as devices share evenly."""
        size = padded_batch_size(number, number, self._mesh)
        rows = self.latents, self.tokens, self._labels
        take = jax.jit(
            functools.partial(jax.tree.map, lambda rows: rows[:size]),
            out_shardings=jax.tree.map(lambda rows: rows.sharding, rows),
        )
        taken = copy.copy(self)
        taken.latents, taken.tokens, taken._labels = take(rows)
        return taken

    def solve(self, *which):
        """The input of a block, see `solver`."""
        return self.solver(*which)()[0]

    def solver(self, block, z_BTP, linear=None, window=1, tolerance=0.0):
        """A function that returns the input of a block, and counts sweeps and tokens in them."""
        self._before_block()
        fixed = self._flow, self._of_block(block), z_BTP, self._labels, self._guidance
        return functools.partial(_solve, *fixed, linear, window, tolerance)

    def fit(self, block: int, tolerance: float):
        """Fits the first guess and the response of a block.

        The response is a regularized least-squares fit, from the residuals of the tokens before a
        token to the error that G leaves at the token, both divided by the larger of the errors of
        the token and of the one before it. It is fitted to sweeps without a response, and again
        whenever some more were made with the response so far, until these solve the block.

        Returns:
          (response, gain and offset, iterates of the sweeps without a response).
        """
        z_BTP, x_BTP = arrays.fetch((self.latents[block], self.tokens[block]))
        ones = np.ones((*z_BTP.shape[:2], 1), np.float32)
        latents = np.concatenate([lagged(z_BTP, range(GAIN_LAGS)), ones], axis=2)
        gain = _ridge(_rows(latents), _rows(x_BTP), GAIN_RIDGE)
        guess = (latents @ gain).astype(np.float32)
        guess[:, 0] = z_BTP[:, 0]
        jacobi = list(self._sweeps(block, guess, tolerance, JACOBI_SWEEPS))
        sweeps, response, iterate = list(jacobi), _fit_response(jacobi, x_BTP), guess
        for _ in range(REFITS):
            more = list(self._sweeps(block, iterate, tolerance, REFITTED_SWEEPS, response))
            sweeps += more
            response = _fit_response(sweeps, x_BTP)
            if len(more) < REFITTED_SWEEPS:
                break
            iterate = more[-1][1]
        linear = tuple(x.astype(np.float32) for x in (response, gain[:-1], gain[-1]))
        return linear, [guess, *(after for _, after in jacobi)]

    def _sweeps(
        self, block: int, iterate: np.ndarray, tolerance: float, limit: int, response=None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (x, G(x)) of sweeps, until one leaves residuals within the tolerance."""
        for _ in range(limit):
            after = self._sweep(block, iterate)
            yield iterate, after
            is_solved = bool(np.abs(after - iterate).max() <= tolerance)
            if distributed.broadcast_from_main(is_solved):  # hosts may round differently
                return
            if response is not None:
                residuals = np.asarray(lagged(after - iterate, LAGS))
                after = after + (residuals @ response).astype(np.float32)
            iterate = after

    def diagnose(self, block: int, iterates: list[np.ndarray], tolerance: float) -> dict[str, Any]:
        """How the iterates converge, and the published metrics of that, see `BlockReport`."""
        z_BTP, x_BTP = arrays.fetch((self.latents[block], self.tokens[block]))
        errors = [np.abs(iterate - x_BTP) for iterate in iterates]
        is_settled = [(error.max(axis=2) <= tolerance).all(axis=0) for error in errors]
        igm = np.linalg.norm((self._sweep(block, z_BTP) - x_BTP).mean(axis=0), 2)
        scale = self._scale(block, x_BTP, z_BTP)
        kernel = arrays.fetch(self._of_block(block)['proj_out']['kernel'])
        shift, *log_scale = (
            np.linalg.norm(kernel[:, part], 2) for part in (-1, 0)[: kernel.shape[1]]
        )
        first = np.linalg.norm((x_BTP[:, 1:] / scale[:, 1:]).mean(axis=0), 2)
        return dict(
            errors=[float(np.sqrt((error**2).mean())) for error in errors],
            settled=[int(np.cumprod(tokens).sum()) for tokens in is_settled],
            igm=float(igm),
            crm=float(first * sum(log_scale) + shift),
        )

    def sweeper(self, block: int):
        """A function that sweeps once over the whole block."""
        z_BTP = self.latents[block]
        fixed = self._flow, self._of_block(block), z_BTP, z_BTP, self._labels, self._guidance
        return functools.partial(_apply, *fixed)

    def amplification(self, block: int, tolerance: float) -> float:
        """The largest error of an image by residuals in one block, relative to these.

        Every residual of the block has the size of the tolerance, and a random sign. Those that
        windows leave are mostly smaller, and what they do to a few samples is a matter of luck.
        """
        tolerance = max(tolerance, 1e-4)  # below, it would be that of rounding
        z_BTP, x_BTP = arrays.fetch((self.latents[block], self.tokens[block]))
        scale = self._scale(block, x_BTP, z_BTP)
        signs = np.random.default_rng(SEED).choice([-1, 1], z_BTP.shape)
        z_BTP = z_BTP + (tolerance * signs / scale).astype(np.float32)
        x_BTP = self.solve(block, arrays.put(z_BTP, self.latents[block].sharding))
        for below in reversed(range(block)):
            x_BTP = self.solve(below, x_BTP[:, ::-1])
        errors = np.abs(arrays.fetch(x_BTP) - arrays.fetch(self.tokens[0]))
        finite = errors[np.isfinite(errors).all(axis=(1, 2))]
        return max(1.0, float(finite.max(initial=0)) / tolerance)

    def _scale(self, block: int, x_BTP: np.ndarray, z_BTP: np.ndarray) -> np.ndarray:
        """exp(log_scale) of a block's tokens; 1 for the first."""
        return self._sweep(block, x_BTP, z_BTP + 1) - x_BTP

    def _sweep(self, block: int, x_BTP: np.ndarray, z_BTP: np.ndarray | None = None) -> np.ndarray:
        """G(x) of the whole block, by default of its own latents."""
        latents = self.latents[block]
        x_BTP = arrays.put(x_BTP, latents.sharding)
        z_BTP = latents if z_BTP is None else arrays.put(z_BTP, latents.sharding)
        fixed = self._flow, self._of_block(block), x_BTP, z_BTP, self._labels, self._guidance
        return arrays.fetch(_apply(*fixed))

    def _of_block(self, block: int):
        return jax.tree.map(lambda x: x[block], self._params['blocks'])


@functools.partial(jax.jit, static_argnums=0)
def _draw_latents(model, params, index, prior_temperature):
    noise = draw_noise(model.image_shape, jax.random.key(SEED), index, jnp.zeros_like(index))
    return model.patchify(scale_noise(model, params, noise, prior_temperature))


@functools.partial(jax.jit, static_argnums=(0, 6))
def _solve(flow: TokenFlow, params, z_BTP, labels, guidance, linear, window, tolerance):
    step = _step(flow, params, labels, guidance)
    if window == 1:
        return solve_sequentially(step, z_BTP), flow.num_tokens - 1, flow.num_tokens - 1
    return solve_in_windows(step, z_BTP, linear, window, tolerance)


@functools.partial(jax.jit, static_argnums=0)
def _apply(flow: TokenFlow, params, x_BTP, z_BTP, labels, guidance):
    """A sweep over the whole block: G(x)."""
    step = _step(flow, params, labels, guidance)
    caches = step.padded_to((), flow.num_tokens - 1)
    after, _ = step(x_BTP[:, :-1], z_BTP[:, 1:], jnp.int32(0), caches)
    return jnp.concatenate([z_BTP[:, :1], after], axis=1)


def _step(flow: TokenFlow, params, labels, guidance) -> GuidedStep:
    block = flow.block()
    params = rules.gathered(block.cast(params), of_block=True)
    return GuidedStep(block, params, labels, guidance)


def _fit_response(sweeps, x_BTP: np.ndarray) -> np.ndarray:
    """The matrices M_k, see `parallel`, from (x, G(x)) of sweeps."""
    inputs, outputs = [], []
    for iterate, after in sweeps:
        size = np.linalg.norm(iterate - x_BTP, axis=2, keepdims=True)
        size = np.maximum(size, np.asarray(lagged(size, [1]))) + 1e-5
        inputs.append(_rows(np.asarray(lagged(after - iterate, LAGS)) / size))
        outputs.append(_rows((x_BTP - after) / size))
    return _ridge(np.concatenate(inputs), np.concatenate(outputs), RESPONSE_RIDGE)


def _rows(x_BTP: np.ndarray) -> np.ndarray:
    return x_BTP.reshape(-1, x_BTP.shape[-1]).astype(np.float64)


def _ridge(inputs: np.ndarray, outputs: np.ndarray, ridge: float) -> np.ndarray:
    """The matrix M of least squares, inputs M = outputs, drawn towards zero."""
    square = inputs.T @ inputs
    square += (ridge * np.trace(square) / len(square) + 1e-12) * np.eye(len(square))
    return np.linalg.solve(square, inputs.T @ outputs)
