"""Measures how each block of a model is sampled fastest, on this device at this batch size.

Samples are drawn token by token, and each block's linear model is fitted to them (see `parallel`).
The error of an image that a residual of each block causes is measured; the block's tolerance is
divided by it. Windows of growing size are then timed in turn with the sequential solution.
"""

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.flow.tokens import TokenFlow, reorder
from tarflow_jax.parallel import arrays, distributed, rules
from tarflow_jax.parallel.mesh import padded_batch_size
from tarflow_jax.sampling.batches import draw_noise
from tarflow_jax.sampling.guidance import Guidance
from tarflow_jax.sampling.labels import spread_labels
from tarflow_jax.sampling.parallel import Calibration, lagged, solve_in_windows
from tarflow_jax.sampling.sample import scale_noise
from tarflow_jax.sampling.sequential import GuidedStep, solve_sequentially

FITTED_SAMPLES = 4, 16  # at least and at most
ROWS_PER_INPUT = 6  # tokens of these samples for each input of a block's first guess
GUIDANCE_KEYS = ('guidance', 'guide', 'anneal_guidance', 'attention_temperature')
FITS = 2  # fits of the response; the second one also uses sweeps with the first response
FITTED_SWEEPS = 10  # at most; hard blocks need that many
REPORTED_SWEEPS = 16  # of Jacobi's at most, whose errors a report shows
RESPONSE_LAGS = 3
RESPONSE_RIDGE = 0.1  # relative to the mean square of what it is fitted to
GAIN_LAGS = 4
GAIN_RIDGE = 1e-4
MIN_GAIN = 0.05  # of the sequential sampler's time, or a block stays sequential
MIN_TIMINGS = 4  # of a window, over all blocks
FEWEST_SWEEPS = 4  # over whole blocks of trained models that were seen to solve them
SLOWDOWN_LIMIT = 1.3  # of the best window's time, beyond which no larger window is tried
ROUNDING = 1e-6
SEED = 2**31 - 2  # of the noise: other samples than a user's first ones


@dataclasses.dataclass
class BlockReport:
    """What was measured of a block.

    Attributes:
      window: the window that was chosen; 1 solves token by token.
      times: seconds of each window tried, relative to the sequential solution.
      sweeps: passes over each window tried, of the slowest sample.
      evaluations: tokens in these passes, relative to the tokens of the sequence.
      errors: root mean square error of the tokens after 0, 1, ... Jacobi sweeps from the latents,
        until all tokens are settled.
      settled: leading tokens within the tolerance in all samples, after 0, 1, ... sweeps.
      amplification: largest error of an image that a residual of 1 in the block causes.
      crm: the convergence ranking metric of GS-Jacobi (2505.12849, section 4.3), of samples; large
        where its authors find a block hard.
      igm: its initial guess metric, of the latents.
    """

    window: int = 1
    times: dict[int, float] = dataclasses.field(default_factory=dict)
    sweeps: dict[int, int] = dataclasses.field(default_factory=dict)
    evaluations: dict[int, float] = dataclasses.field(default_factory=dict)
    errors: list[float] = dataclasses.field(default_factory=list)
    settled: list[int] = dataclasses.field(default_factory=list)
    amplification: float = 1.0
    crm: float = 0.0
    igm: float = 0.0

    @property
    def contraction(self) -> float:
        """The factor by which a Jacobi sweep shrinks errors, in the mean until all are settled.

        Its logarithm is the largest Lyapunov exponent of the block's inverse, seen over few tokens.
        """
        shrunk = [error for error in self.errors if error > ROUNDING]
        return (shrunk[-1] / shrunk[0]) ** (1 / (len(shrunk) - 1)) if len(shrunk) > 1 else 0.0


def calibrate(
    model: TarFlow,
    params,
    mesh,
    *,
    batch_size: int,
    tolerance: float = 1e-3,
    labels: str = 'even',
    prior_temperature: float = 1.0,
    windows: tuple[int, ...] = (),
    log: Callable[[str], object] = lambda line: None,
    before_block: Callable[[], object] = lambda: None,
    **guidance,
) -> tuple[Calibration, list[BlockReport]]:
    """Finds how each block of a model is sampled fastest.

    Args:
      model: the flow.
      params: its parameters.
      mesh: the devices of all processes, each of which must call.
      batch_size: samples at a time, for which it is measured.
      tolerance: what an image may differ by from the sequential one, pixels in [-1, 1].
      labels: 'even' or 'uniform', see `labels.spread_labels`.
      prior_temperature: see `sample`.
      windows: tokens of the window of each block, 1 for token by token, instead of the fastest.
      log: called with a line now and then, in the main process.
      before_block: called before each solution of a block; its exceptions end the calibration.
      **guidance: see `sample`.

    Returns:
      The calibration, and a report of each block from the first to the last.
    """
    guidance = _guidance(model, **guidance)
    flow = model.token_flow()
    reports = [BlockReport() for _ in range(flow.num_blocks)]
    with rules.activation_sharding(mesh):
        draw = functools.partial(
            *(_Samples, model, params, mesh, labels, prior_temperature, guidance),
            before_block=before_block,
        )
        fitted = draw(_num_fitted(flow))
        log('Samples are drawn; fitting each block.')
        fits = [fitted.fit(block, tolerance) for block in range(flow.num_blocks)]
        response, gain, offset = (np.stack(x) for x in zip(*fits, strict=True))
        for block, report in enumerate(reports):
            fitted.diagnose(block, report, tolerance)
            if not windows or windows[block] > 1:
                linear = response[block], gain[block], offset[block]
                report.amplification = fitted.amplification(block, linear, tolerance)
        if not windows:
            _time_windows(draw(batch_size), (response, gain, offset), tolerance, reports, log)
            windows = tuple(distributed.broadcast_from_main([report.window for report in reports]))
        for window, report in zip(windows, reports, strict=True):
            report.window = window
    amplification = np.array([report.amplification for report in reports], np.float32)
    return Calibration(windows, response, gain, offset, amplification), reports


def may_be_faster(
    model: TarFlow,
    params,
    mesh,
    *,
    batch_size: int,
    labels: str = 'even',
    prior_temperature: float = 1.0,
    before_block: Callable[[], object] = lambda: None,
    **guidance,
) -> bool:
    """Whether windows could be faster than the sequential solution, if blocks were easy.

    It is quickly told, from the time of a sweep. The arguments are those of `calibrate`.
    """
    fixed = model, params, mesh, labels, prior_temperature, _guidance(model, **guidance)
    with rules.activation_sharding(mesh):
        samples = _Samples(*fixed, batch_size, before_block=before_block)
        return distributed.broadcast_from_main(samples.sweeps_in_time() > FEWEST_SWEEPS)


def _guidance(
    model, *, guidance=0.0, guide='both', anneal_guidance=False, attention_temperature=1.0
) -> Guidance:
    return Guidance.checked(
        *(guidance, guide, anneal_guidance, attention_temperature), num_classes=model.num_classes
    )


def _num_fitted(flow: TokenFlow) -> int:
    """Samples to which linear models are fitted."""
    rows = ROWS_PER_INPUT * GAIN_LAGS * flow.token_dim
    return int(np.clip(math.ceil(rows / flow.num_tokens), *FITTED_SAMPLES))


class _Samples:
    """Samples drawn token by token, with the latents and the input of each block.

    Attributes:
      latents: float32 [B, T, P] of each block, in its own order of tokens.
      tokens: its input.
    """

    def __init__(
        self, model, params, mesh, labels, prior_temperature, guidance, number, *, before_block
    ):
        self._flow, self._params, self._guidance = model.token_flow(), params, guidance
        self._before_block = before_block
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
        for block in reversed(range(self._flow.num_blocks)):
            self.latents.insert(0, z_BTP[:, ::-1])
            z_BTP = self.solve(block, self.latents[0])
            self.tokens.insert(0, z_BTP)

    def solve(self, *which):
        """The input of a block, see `solver`."""
        return self.solver(*which)()[0]

    def solver(self, block, z_BTP, linear=None, window=1, tolerance=0.0):
        """A function that returns the input of a block, and counts sweeps and tokens in them."""
        self._before_block()
        fixed = self._flow, self._of_block(block), z_BTP, self._labels, self._guidance
        return functools.partial(_solve, *fixed, linear, window, tolerance)

    def fit(self, block: int, tolerance: float):
        """Response, gain and offset of a block.

        The response is a regularized least-squares fit, from the residuals of the tokens before a
        token to the error that G leaves at the token, both divided by the larger of the errors of
        the token and of the one before it. It is fitted to sweeps without a response, then to
        these and to sweeps with the first fit. Either end once residuals are within the tolerance.
        """
        z_BTP, x_BTP = arrays.fetch((self.latents[block], self.tokens[block]))
        ones = np.ones((*z_BTP.shape[:2], 1), np.float32)
        latents = np.concatenate([lagged(z_BTP, range(GAIN_LAGS)), ones], axis=2)
        gain = _ridge(_rows(latents), _rows(x_BTP), GAIN_RIDGE)
        guess = (latents @ gain).astype(np.float32)
        guess[:, 0] = z_BTP[:, 0]
        lags = range(1, RESPONSE_LAGS + 1)
        response = np.zeros((RESPONSE_LAGS * x_BTP.shape[2], x_BTP.shape[2]))
        inputs, outputs = [], []
        for _ in range(FITS):
            iterate = guess
            for _ in range(FITTED_SWEEPS):
                after = self._sweep(block, iterate)
                residuals = np.asarray(lagged(after - iterate, lags))
                size = np.linalg.norm(iterate - x_BTP, axis=2, keepdims=True)
                size = np.maximum(size, np.asarray(lagged(size, [1]))) + 1e-5
                inputs.append(_rows(residuals / size))
                outputs.append(_rows((x_BTP - after) / size))
                is_solved = bool(np.abs(after - iterate).max() <= tolerance)
                if distributed.broadcast_from_main(is_solved):  # hosts may round differently
                    break
                iterate = after + (residuals @ response).astype(np.float32)
            response = _ridge(np.concatenate(inputs), np.concatenate(outputs), RESPONSE_RIDGE)
        return tuple(x.astype(np.float32) for x in (response, gain[:-1], gain[-1]))

    def diagnose(self, block: int, report: BlockReport, tolerance: float) -> None:
        """Notes how Jacobi's sweeps converge, and the published metrics of that."""
        z_BTP, x_BTP = arrays.fetch((self.latents[block], self.tokens[block]))
        iterate = z_BTP
        for _ in range(REPORTED_SWEEPS):
            error = iterate - x_BTP
            report.errors.append(float(np.sqrt((error**2).mean())))
            is_settled = (np.abs(error).max(axis=2) <= tolerance).all(axis=0)
            report.settled.append(int(np.cumprod(is_settled).sum()))
            if is_settled.all():
                break
            iterate = self._sweep(block, iterate)
        swept = self._sweep(block, z_BTP)
        report.igm = float(np.linalg.norm((swept - x_BTP).mean(axis=0), 2))
        ones, zeros = np.ones_like(z_BTP), np.zeros_like(z_BTP)
        # exp(log_scale)
        scale = self._sweep(block, x_BTP, ones) - self._sweep(block, x_BTP, zeros)
        kernel = arrays.fetch(self._of_block(block)['proj_out']['kernel'])
        shift, *log_scale = (
            np.linalg.norm(kernel[:, part], 2) for part in (-1, 0)[: kernel.shape[1]]
        )
        first = np.linalg.norm((x_BTP[:, 1:] / scale[:, 1:]).mean(axis=0), 2)
        report.crm = float(first * sum(log_scale) + shift)

    def _sweep(self, block: int, x_BTP: np.ndarray, z_BTP: np.ndarray | None = None) -> np.ndarray:
        """G(x) of the whole block, by default of its own latents."""
        latents = self.latents[block]
        x_BTP = arrays.put(x_BTP, latents.sharding)
        z_BTP = latents if z_BTP is None else arrays.put(z_BTP, latents.sharding)
        fixed = self._flow, self._of_block(block), x_BTP, z_BTP, self._labels, self._guidance
        return arrays.fetch(_apply(*fixed))

    def sweeps_in_time(self) -> float:
        """How many sweeps over the first block take as long as its sequential solution."""
        z_BTP = self.latents[0]
        fixed = self._flow, self._of_block(0), z_BTP, z_BTP, self._labels, self._guidance
        sweep, solve = functools.partial(_apply, *fixed), self.solver(0, z_BTP)
        jax.block_until_ready((sweep(), solve()))  # compiled now
        return statistics.median(_timed(solve)[0] / _timed(sweep)[0] for _ in range(MIN_TIMINGS))

    def amplification(self, block: int, linear, tolerance: float) -> float:
        """The largest image error of a residual at the tolerance, relative to the tolerance.

        The block is solved as a whole: smaller windows were seen to leave smaller errors.
        """
        tolerance = max(tolerance, 1e-4)  # below, it would be that of rounding
        z_BTP = self.latents[block]
        x_BTP = self.solve(block, z_BTP, linear, max(1, z_BTP.shape[1] - 1), tolerance)
        for below in reversed(range(block)):
            x_BTP = self.solve(below, x_BTP[:, ::-1])
        errors = np.abs(arrays.fetch(x_BTP) - arrays.fetch(self.tokens[0]))
        finite = errors[np.isfinite(errors).all(axis=(1, 2))]
        return max(1.0, float(finite.max(initial=0)) / tolerance)

    def _of_block(self, block: int):
        return _slice(self._params['blocks'], block)


def _time_windows(samples: _Samples, linear, tolerance, reports, log) -> None:
    """Times windows of growing size, until all blocks are slower; notes the best."""
    for window in _window_sizes(samples.latents[0].shape[1]):
        _time_window(samples, linear, window, tolerance, reports)
        log(
            f'A window of {window} tokens: '
            + ' '.join(f'{report.times[window]:.2f}' for report in reports)
            + ' of the sequential time, by block.'
        )
        slowdown = min(report.times[window] / min(report.times.values()) for report in reports)
        if distributed.broadcast_from_main(slowdown) > SLOWDOWN_LIMIT:
            break
    for report in reports:
        fastest = min(report.times, key=lambda window: report.times[window], default=1)
        if report.times.get(fastest, 1.0) < 1 - MIN_GAIN:
            report.window = fastest


def _time_window(samples: _Samples, linear, window: int, tolerance, reports) -> None:
    """Notes sweeps, evaluations and times of each block.

    One program solves all blocks. The time of an evaluation is therefore taken as the same in all
    of them, the median of what is measured.
    """
    times = []
    for _ in range(math.ceil(MIN_TIMINGS / len(reports))):
        for block, report in enumerate(reports):
            z_BTP = samples.latents[block]
            settings = _slice(linear, block), window, tolerance / report.amplification
            run, run_sequential = (
                samples.solver(block, z_BTP, *settings),
                samples.solver(block, z_BTP),
            )
            if not times:
                jax.block_until_ready(run())  # compiled now
            seconds, (_, num_sweeps, num_evaluated) = _timed(run)
            report.sweeps[window] = int(num_sweeps)
            report.evaluations[window] = int(num_evaluated) / (z_BTP.shape[1] - 1)
            ratio = seconds / _timed(run_sequential)[0]
            times.append(ratio / report.evaluations[window])
    for report in reports:
        report.times[window] = statistics.median(times) * report.evaluations[window]


def _window_sizes(num_tokens: int) -> list[int]:
    """Windows to try, 16, 64, ... and whole blocks."""
    powers = (4**k for k in itertools.count(2))
    smaller = list(itertools.takewhile(lambda window: window < num_tokens - 1, powers))
    return [*smaller, num_tokens - 1] if num_tokens > 2 else []


def _timed(run):
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - start, result


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


def _slice(tree, block: int):
    return jax.tree.map(lambda x: x[block], tree)


def _rows(x_BTP: np.ndarray) -> np.ndarray:
    return x_BTP.reshape(-1, x_BTP.shape[-1]).astype(np.float64)


def _ridge(inputs: np.ndarray, outputs: np.ndarray, ridge: float) -> np.ndarray:
    """The matrix M of least squares, inputs M = outputs, drawn towards zero."""
    square = inputs.T @ inputs
    square += (ridge * np.trace(square) / len(square) + 1e-12) * np.eye(len(square))
    return np.linalg.solve(square, inputs.T @ outputs)
