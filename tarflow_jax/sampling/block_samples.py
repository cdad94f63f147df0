"""Samples with the latents and the input of each block, and what is fitted and measured on them."""

import copy
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.flow.tokens import TokenFlow, reorder
from tarflow_jax.parallel import arrays, distributed, rules
from tarflow_jax.parallel.mesh import padded_batch_size
from tarflow_jax.sampling.batches import draw_noise
from tarflow_jax.sampling.inverse import solve_block
from tarflow_jax.sampling.labels import spread_labels
from tarflow_jax.sampling.parallel import apply_map, lagged
from tarflow_jax.sampling.sample import scale_noise
from tarflow_jax.sampling.sequential import GuidedStep

JACOBI_SWEEPS = 10  # at most; fits to fewer were seen to be unstable in hard blocks
REFITS, REFITTED_SWEEPS = 3, 5
LAGS = range(1, 4)  # of the response
ROWS_PER_INPUT = 6  # tokens per fitted input
RESPONSE_RIDGE = 0.1  # relative to the mean square of the inputs of the fit
GAIN_LAGS = 4
GAIN_RIDGE = 1e-4
SEED = 2**31 - 2  # of the noise: other samples than a user's first ones


class BlockSamples:
    """Samples drawn token by token, with the latents and the input of each block.

    Attributes:
      latents: float32 [B, T, P] of each block that was solved, in its own order of tokens; of the
        last `solved_blocks` of the flow, or of all. NumPy, whole in every process.
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
        labels = spread_labels(labels, size, model.num_classes, SEED)
        self._labels = np.full(size, -1, np.int32) if labels is None else labels
        index = self._put(np.arange(size, dtype=np.int32))
        z_BTP = arrays.fetch(_draw_latents(model, params, index, prior_temperature))
        z_BTP = reorder(z_BTP, self._flow.num_blocks)
        self.latents, self.tokens = [], []
        for block in list(reversed(range(self._flow.num_blocks)))[:solved_blocks]:
            self.latents.insert(0, z_BTP[:, ::-1])
            z_BTP = self.solve(block, self.latents[0])
            self.tokens.insert(0, z_BTP)

    def first(self, number: int) -> 'BlockSamples':
        """The first samples, at least this number and as many as devices share evenly."""
        size = padded_batch_size(number, number, self._mesh)
        taken = copy.copy(self)
        taken.latents, taken.tokens, taken._labels = jax.tree.map(
            lambda rows: rows[:size], (self.latents, self.tokens, self._labels)
        )
        return taken

    def solve(self, *which):
        """The input of a block, see `solver`."""
        return arrays.fetch(self.solver(*which)()[0])

    def solver(self, block, z_BTP, linear=None, window=1, tolerance=0.0):
        """A function that returns the input of a block, and counts sweeps and tokens in them."""
        self._before_block()
        if window == 1:
            linear, tolerance = None, 0.0  # one program, whatever they are
        rows = self._put((z_BTP, self._labels))
        fixed = self._flow, self._of_block(block), *rows, self._guidance
        return functools.partial(_solve, *fixed, linear, window, tolerance)

    def fit(self, block: int, tolerance: float) -> tuple[np.ndarray, ...]:
        """Fits the first guess and the response of a block.

        The response is a regularized least-squares fit, from the residuals of the tokens before a
        token to the error that G leaves at the token, both divided by the larger of the errors of
        the token and of the one before it. It is fitted to sweeps without a response, and again
        whenever some more were made with the response so far, until these solve the block. These
        sweeps are over the first eighth of the tokens, or as many as the fit needs: their number
        does less for a fit than that of the samples.

        Returns:
          (response, gain and offset), see `parallel.Calibration`.
        """
        z_BTP, x_BTP = self.latents[block], self.tokens[block]
        ones = np.ones((*z_BTP.shape[:2], 1), np.float32)
        latents = np.concatenate([lagged(z_BTP, range(GAIN_LAGS)), ones], axis=2)
        gain = _ridge(_rows(latents), _rows(x_BTP), GAIN_RIDGE)
        gain, offset = gain[:-1].astype(np.float32), gain[-1].astype(np.float32)
        num_samples, num_tokens, dim = x_BTP.shape
        rows = ROWS_PER_INPUT * len(LAGS) * dim
        num_swept = min(max(math.ceil(rows / num_samples), num_tokens // 8), num_tokens)
        x_BTP, iterate = x_BTP[:, :num_swept], _guess(z_BTP[:, :num_swept], gain, offset)
        sweeps = list(self._sweeps(block, iterate, tolerance, JACOBI_SWEEPS))
        response = _fit_response(sweeps, x_BTP)
        for _ in range(REFITS):
            more = list(self._sweeps(block, iterate, tolerance, REFITTED_SWEEPS, response))
            sweeps += more
            response = _fit_response(sweeps, x_BTP)
            if len(more) < REFITTED_SWEEPS:
                break
            iterate = more[-1][1]
        return response, gain, offset

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
                after = after + residuals @ response
            iterate = after

    def diagnose(self, block: int, linear, tolerance: float) -> dict[str, Any]:
        """How Jacobi's sweeps converge, and the published metrics of that, see `BlockReport`."""
        z_BTP, x_BTP = self.latents[block], self.tokens[block]
        _, gain, offset = linear
        guess = _guess(z_BTP, gain, offset)
        sweeps = self._sweeps(block, guess, tolerance, JACOBI_SWEEPS)
        iterates = [guess, *(after for _, after in sweeps)]
        errors = [np.abs(iterate - x_BTP) for iterate in iterates]
        is_settled = [(error.max(axis=2) <= tolerance).all(axis=0) for error in errors]
        igm = np.linalg.norm((self._sweep(block, z_BTP) - x_BTP).mean(axis=0), 2)
        scale = self._scale(block)
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

    def sweeper(self, block: int, x_BTP: np.ndarray, z_BTP: np.ndarray | None = None):
        """A function that returns G(x) of a block's tokens or the first of them.

        The latents are those of the samples unless others are given.
        """
        z_BTP = self.latents[block] if z_BTP is None else z_BTP
        rows = self._put((x_BTP, z_BTP[:, : x_BTP.shape[1]], self._labels))
        return functools.partial(_apply, self._flow, self._of_block(block), *rows, self._guidance)

    def amplifications(self, blocks: list[int], tolerance: float) -> dict[int, float]:
        """The largest error of an image by residuals in each of some blocks, relative to these.

        Every residual of the block has the size of the tolerance, and a random sign. Those that
        windows leave are mostly smaller, and their effect on a few samples is a matter of chance.
        Blocks share the samples, at least two for each, so that few solutions serve them all.
        """
        tolerance = max(tolerance, 1e-4)  # below, it would be that of rounding
        num_samples = len(self._labels)
        num_together = max(1, num_samples // 2)
        amplifications = {}
        for first in range(0, len(blocks), num_together):
            together = blocks[first : first + num_together]
            of_sample = np.resize(together, num_samples)
            errors = np.abs(self._perturbed_images(of_sample, tolerance) - self.tokens[0])
            largest = np.where(np.isfinite(errors).all(axis=(1, 2)), errors.max(axis=(1, 2)), 0)
            for block in together:
                of_block = largest[of_sample == block].max(initial=tolerance)
                amplifications[block] = float(of_block) / tolerance
        return amplifications

    def _perturbed_images(self, of_sample: np.ndarray, size: float) -> np.ndarray:
        """Tokens of images with residuals of a size in one block, which differs between samples."""
        random = np.random.default_rng(SEED)
        last = max(of_sample)
        z_BTP = self.latents[last]
        for block in reversed(range(last + 1)):
            residual = size * random.choice([-1, 1], z_BTP.shape) / self._scale(block)
            here = (of_sample == block)[:, None, None]
            z_BTP = np.where(here, z_BTP + residual, z_BTP).astype(np.float32)
            z_BTP = self.solve(block, z_BTP)[:, ::-1]
        return z_BTP[:, ::-1]

    def _scale(self, block: int) -> np.ndarray:
        """exp(log_scale) of a block's tokens; 1 for the first."""
        x_BTP = self.tokens[block]
        return self._sweep(block, x_BTP, self.latents[block] + 1) - x_BTP

    def _sweep(self, *which) -> np.ndarray:
        """G(x), see `sweeper`."""
        return arrays.fetch(self.sweeper(*which)())

    def _put(self, rows):
        """Lays rows over the devices."""
        sharding = rules.batch_sharding(self._mesh)
        return arrays.put(rows, jax.tree.map(lambda _: sharding, rows))

    def _of_block(self, block: int):
        return jax.tree.map(lambda x: x[block], self._params['blocks'])


@functools.partial(jax.jit, static_argnums=0)
def _draw_latents(model, params, index, prior_temperature):
    noise = draw_noise(model.image_shape, jax.random.key(SEED), index, jnp.zeros_like(index))
    return model.patchify(scale_noise(model, params, noise, prior_temperature))


@functools.partial(jax.jit, static_argnums=(0, 6))
def _solve(flow: TokenFlow, params, z_BTP, labels, guidance, linear, window, tolerance):
    step = _step(flow, params, labels, guidance)
    return solve_block(step, z_BTP, linear, window, tolerance)


@functools.partial(jax.jit, static_argnums=0)
def _apply(flow: TokenFlow, params, x_BTP, z_BTP, labels, guidance):
    """A sweep over the whole block, or its first tokens: G(x)."""
    return apply_map(_step(flow, params, labels, guidance), x_BTP, z_BTP)


def _step(flow: TokenFlow, params, labels, guidance) -> GuidedStep:
    block = flow.block()
    params = rules.gathered(block.cast(params), of_block=True)
    return GuidedStep(block, params, labels, guidance)


def _guess(z_BTP: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The first guess, see `parallel`."""
    guess = np.asarray(lagged(z_BTP, range(GAIN_LAGS))) @ gain + offset
    guess[:, 0] = z_BTP[:, 0]
    return guess


def _fit_response(sweeps, x_BTP: np.ndarray) -> np.ndarray:
    """The matrices M_k, see `parallel`, from (x, G(x)) of sweeps."""
    inputs, outputs = [], []
    for iterate, after in sweeps:
        size = np.linalg.norm(iterate - x_BTP, axis=2, keepdims=True)
        size = np.maximum(size, np.asarray(lagged(size, [1]))) + 1e-5
        inputs.append(_rows(np.asarray(lagged(after - iterate, LAGS)) / size))
        outputs.append(_rows((x_BTP - after) / size))
    response = _ridge(np.concatenate(inputs), np.concatenate(outputs), RESPONSE_RIDGE)
    return response.astype(np.float32)


def _rows(x_BTP: np.ndarray) -> np.ndarray:
    return x_BTP.reshape(-1, x_BTP.shape[-1]).astype(np.float64)


def _ridge(inputs: np.ndarray, outputs: np.ndarray, ridge: float) -> np.ndarray:
    """The matrix M of ridge regression, inputs M = outputs."""
    square = inputs.T @ inputs
    square += (ridge * np.trace(square) / len(square) + 1e-12) * np.eye(len(square))
    return np.linalg.solve(square, inputs.T @ outputs)
