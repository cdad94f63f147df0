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
import numpy as np

from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.flow.tokens import TokenFlow
from tarflow_jax.parallel import distributed, rules
from tarflow_jax.sampling.block_samples import GAIN_LAGS, BlockSamples
from tarflow_jax.sampling.guidance import Guidance
from tarflow_jax.sampling.parallel import Calibration

FITTED_SAMPLES = 4, 16  # at least and at most
ROWS_PER_INPUT = 6  # tokens of these samples for each input of a block's first guess
GUIDANCE_KEYS = ('guidance', 'guide', 'anneal_guidance', 'attention_temperature')
MIN_GAIN = 0.05  # of the sequential sampler's time, or a block stays sequential
MIN_TIMINGS = 4  # of a window, over all blocks
FEWEST_SWEEPS = 4  # over whole blocks of trained models that were seen to solve them
SLOWDOWN_LIMIT = 1.3  # of the best window's time, beyond which no larger window is tried
ROUNDING = 1e-6


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
    with rules.activation_sharding(mesh):
        draw = functools.partial(
            *(BlockSamples, model, params, mesh, labels, prior_temperature, guidance),
            before_block=before_block,
        )
        fitted = draw(_num_fitted(flow))
        log('Samples are drawn; fitting each block.')
        fits = [fitted.fit(block, tolerance) for block in range(flow.num_blocks)]
        reports = [
            BlockReport(**fitted.diagnose(block, tolerance)) for block in range(flow.num_blocks)
        ]
        for block, report in enumerate(reports):
            if not windows or windows[block] > 1:
                report.amplification = fitted.amplification(block, fits[block], tolerance)
        if not windows:
            _time_windows(draw(batch_size), fits, tolerance, reports, log)
            windows = tuple(distributed.broadcast_from_main([report.window for report in reports]))
        for window, report in zip(windows, reports, strict=True):
            report.window = window
    response, gain, offset = (np.stack(arrays) for arrays in zip(*fits, strict=True))
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
        samples = BlockSamples(*fixed, batch_size, before_block=before_block)
        sweep, solve = samples.sweeper(0), samples.solver(0, samples.latents[0])
        jax.block_until_ready((sweep(), solve()))  # compiled now
        ratios = [_timed(solve)[0] / _timed(sweep)[0] for _ in range(MIN_TIMINGS)]
        return distributed.broadcast_from_main(statistics.median(ratios) > FEWEST_SWEEPS)


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


def _time_windows(samples: BlockSamples, fits, tolerance, reports, log) -> None:
    """Times windows of growing size, until all blocks are slower; notes the best."""
    for window in _window_sizes(samples.latents[0].shape[1]):
        _time_window(samples, fits, window, tolerance, reports)
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


def _time_window(samples: BlockSamples, fits, window: int, tolerance, reports) -> None:
    """Notes sweeps, evaluations and times of each block.

    One program solves all blocks. The time of an evaluation is therefore taken as the same in all
    of them, the median of what is measured.
    """
    times = []
    for _ in range(math.ceil(MIN_TIMINGS / len(reports))):
        for block, report in enumerate(reports):
            z_BTP = samples.latents[block]
            stricter = tolerance / report.amplification
            run = samples.solver(block, z_BTP, fits[block], window, stricter)
            run_sequential = samples.solver(block, z_BTP)
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
