"""Measures how each block of a model is sampled fastest, on this device at this batch size.

Samples are drawn token by token, and each block's linear model is fitted to them (see `parallel`).
Windows are timed in turn with the sequential solution. Where one is faster, the error of an image
that a residual of the block causes is measured; the block's tolerance is divided by it.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.flow.tokens import TokenFlow
from tarflow_jax.parallel import distributed, rules
from tarflow_jax.sampling.block_samples import GAIN_LAGS, ROWS_PER_INPUT, BlockSamples
from tarflow_jax.sampling.guidance import Guidance
from tarflow_jax.sampling.parallel import Calibration

FITTED_SAMPLES = 8, 16  # at least (some fits to 4 were seen to be unstable) and at most
DIAGNOSED_SAMPLES = 2
MIN_GAIN = 0.05  # of the sequential sampler's time, or a block stays sequential
TIMINGS = 3  # of a window
FEWEST_SWEEPS = 4  # over whole blocks of trained models that were seen to solve them
MIN_SECONDS = 60.0  # of samples token by token; about as long as a calibration takes
ROUNDING = 1e-6


@dataclasses.dataclass
class BlockReport:
    """What was measured of a block.

    Attributes:
      window: the window that was chosen; 1 solves token by token.
      times: seconds of each window tried, relative to the sequential solution; of the chosen one
        at the tolerance of the block, of others at that of the image.
      sweeps: passes over each window tried, of the slowest sample.
      evaluations: tokens in these passes, relative to the tokens of the sequence.
      errors: root mean square error of the tokens after 0, 1, ... Jacobi sweeps from the first
        guess, until all residuals are within the tolerance or for some sweeps.
      settled: leading tokens within the tolerance in all samples, after 0, 1, ... sweeps.
      amplification: largest error of an image that a residual of 1 in the block causes, measured
        where a window is faster.
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
    def fastest(self) -> int:
        """The window of the least time."""
        times = {1: 1.0, **self.times}
        return min(times, key=lambda window: times[window])

    def choose(self) -> None:
        """Chooses the fastest window, if it gains enough."""
        self.window = self.fastest if self.times.get(self.fastest, 1.0) < 1 - MIN_GAIN else 1

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
      tolerance: largest difference of an image from the sequential one, pixels in [-1, 1].
      labels: 'even' or 'uniform', see `labels.spread_labels`.
      prior_temperature: see `sample`.
      windows: tokens of the window of each block, 1 for token by token, instead of the fastest.
      log: called with a line now and then, in the main process.
      before_block: called before each solution of a block; its exceptions end the calibration.
      **guidance: see `sample`.

    Returns:
      The calibration, and a report of each block from the first to the last.
    """
    guidance = Guidance.checked(model.num_classes, **guidance)
    flow = model.token_flow()
    num_fitted = _num_fitted(flow)
    with rules.activation_sharding(mesh):
        samples = BlockSamples(
            *(model, params, mesh, labels, prior_temperature, guidance),
            num_fitted if windows else max(num_fitted, batch_size),
            before_block=before_block,
        )
        log('Samples are drawn; fitting each block.')
        fitted, diagnosed = samples.first(num_fitted), samples.first(DIAGNOSED_SAMPLES)
        fits = [fitted.fit(block, tolerance) for block in range(flow.num_blocks)]
        reports = [
            BlockReport(**diagnosed.diagnose(block, fit, tolerance))
            for block, fit in enumerate(fits)
        ]
        if windows:
            for window, report in zip(windows, reports, strict=True):
                report.window = window
        else:
            timed = samples.first(batch_size)
            _choose_windows(timed, fits, tolerance, reports, log)
        faster = [block for block, report in enumerate(reports) if report.window > 1]
        for block, amplification in fitted.amplifications(faster, tolerance).items():
            reports[block].amplification = amplification
            if not windows:
                _choose_again(timed, fits, tolerance, block, reports[block])
    response, gain, offset = (np.stack(arrays) for arrays in zip(*fits, strict=True))
    windows = tuple(report.window for report in reports)
    amplification = np.array([report.amplification for report in reports], np.float32)
    return Calibration(windows, response, gain, offset, amplification), reports


def may_pay(
    model: TarFlow,
    params,
    mesh,
    *,
    batch_size: int,
    num_batches: int,
    labels: str = 'even',
    prior_temperature: float = 1.0,
    before_block: Callable[[], object] = lambda: None,
    **guidance,
) -> bool:
    """Whether a calibration for some batches may pay, with the later ones that use it.

    That is so if these take longer than `MIN_SECONDS` token by token, and if windows would be
    faster in easy blocks. This is estimated quickly, from the times of solving one block and of a
    sweep over it. The other arguments are those of `calibrate`.
    """
    guidance = Guidance.checked(model.num_classes, **guidance)
    fixed = model, params, mesh, labels, prior_temperature, guidance
    with rules.activation_sharding(mesh):
        samples = BlockSamples(*fixed, batch_size, before_block=before_block, solved_blocks=1)
        sweep, solve = (run(-1, samples.latents[-1]) for run in (samples.sweeper, samples.solver))
        jax.block_until_ready((sweep(), solve()))  # compiled now
        pairs = [(_timed(solve), _timed(sweep)) for _ in range(TIMINGS)]
    of_block, of_sweep = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    takes_long = of_block * model.num_blocks * num_batches > MIN_SECONDS
    return distributed.broadcast_from_main(takes_long and of_block > FEWEST_SWEEPS * of_sweep)


def _num_fitted(flow: TokenFlow) -> int:
    """Samples to which first guesses and responses are fitted."""
    rows = ROWS_PER_INPUT * GAIN_LAGS * flow.token_dim
    return int(np.clip(math.ceil(rows / flow.num_tokens), *FITTED_SAMPLES))


def _choose_windows(samples: BlockSamples, fits, tolerance, reports, log) -> None:
    """Times windows, and chooses the fastest of each block.

    A larger window evaluates more tokens, in less time each. Whole blocks are tried only if a
    quarter of the tokens is the fastest window of some block, and a sixteenth only if whole blocks
    are not.
    """
    num_tokens = samples.latents[0].shape[1]

    def is_fastest(window: int) -> bool:
        """Times a window; whether it is the fastest of some block."""
        if window < 2:
            return True  # it is the sequential sampler
        _time_window(samples, fits, window, tolerance, reports)
        times = [report.times.get(window, math.nan) for report in reports]
        log(
            f'A window of {window} tokens: '
            + ' '.join('-' if math.isnan(time) else f'{time:.2f}' for time in times)
            + ' of the sequential time, by block.'
        )
        return any(report.fastest == window for report in reports)

    if not (is_fastest(num_tokens // 4) and is_fastest(num_tokens - 1)):
        is_fastest(num_tokens // 16)
    for report in reports:
        report.choose()


def _time_window(samples: BlockSamples, fits, window: int, tolerance, reports) -> None:
    """Notes sweeps, evaluations and times of the blocks in which the window may be the fastest.

    One program solves all blocks. The time of an evaluation is therefore taken as the same in all
    of them, and is measured in the easiest, in turn with the fastest solution so far. Harder ones
    follow until the window is not the fastest.
    """
    order = sorted(range(len(reports)), key=lambda block: reports[block].contraction)
    order = distributed.broadcast_from_main(order)
    easiest, reference = order[0], reports[order[0]].fastest
    count = functools.partial(_count, samples, fits, window, tolerance)
    count(easiest, reports[easiest])  # compiled now
    solver = functools.partial(samples.solver, easiest, samples.latents[easiest], fits[easiest])
    run, run_reference = solver(window, tolerance), solver(reference, tolerance)
    jax.block_until_ready(run_reference())  # compiled, the first time
    ratio = statistics.median(_timed(run) / _timed(run_reference) for _ in range(TIMINGS))
    ratio *= reports[easiest].times.get(reference, 1.0)
    of_evaluation = distributed.broadcast_from_main(ratio / reports[easiest].evaluations[window])
    for block in order:
        report = reports[block]
        if block != easiest:
            count(block, report)
        report.times[window] = of_evaluation * report.evaluations[window]
        if report.fastest != window:
            break


def _count(samples: BlockSamples, fits, window: int, tolerance, block: int, report) -> None:
    """Notes sweeps and evaluations of a window."""
    z_BTP = samples.latents[block]
    _, num_sweeps, num_evaluated = samples.solver(block, z_BTP, fits[block], window, tolerance)()
    report.sweeps[window] = int(num_sweeps)
    report.evaluations[window] = int(num_evaluated) / (z_BTP.shape[1] - 1)


def _choose_again(samples: BlockSamples, fits, tolerance, block: int, report) -> None:
    """Chooses among windows at the tolerance of the block, until the choice no longer changes."""
    counted = {1}
    while (window := report.window) not in counted:
        counted.add(window)
        of_evaluation = report.times[window] / report.evaluations[window]
        _count(samples, fits, window, tolerance / report.amplification, block, report)
        report.times[window] = of_evaluation * report.evaluations[window]
        report.choose()


def _timed(run) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
