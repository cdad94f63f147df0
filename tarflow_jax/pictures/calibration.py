"""What a calibration of the sampler measured."""

from collections.abc import Sequence
from typing import Any

from tarflow_jax.pictures.picture import FAINT, Picture, house_style, ordered_colors, panels


@house_style
def calibration(reports: Sequence[Any], tolerance: float) -> Picture:
    """Errors and settled tokens by sweep, times by window, and the published metrics, by block.

    Args:
      reports: a `sampling.calibrate.BlockReport` of each block, the one next to the data first.
      tolerance: largest allowed difference of an image from the sequential one.
    """
    picture, (errors, settled, times, metrics) = panels(2.3, 2.0, 2.0, 2.0)
    colors = ordered_colors(len(reports))
    for block, (report, color) in enumerate(zip(reports, colors, strict=True), start=1):
        errors.semilogy(report.errors, color=color, label=f'block {block}')
        settled.plot(report.settled, color=color)
        if report.times:
            times.semilogx(*zip(*report.times.items(), strict=True), 'o-', color=color, base=2)
        metrics.plot(report.crm, report.contraction, 'o', color=color)
        metrics.annotate(f' {block}', (report.crm, report.contraction), va='bottom')
    errors.axhline(tolerance, color=FAINT, linestyle=':')
    errors.legend(loc='best', ncols=2 if len(reports) > 4 else 1, fontsize=9)
    sweeps = 'Jacobi sweeps from the first guess'
    errors.set(title='root mean square error of the tokens', xlabel=sweeps)
    settled.set(title='settled tokens, counted from the first', xlabel=sweeps)
    times.axhline(1, color=FAINT, linestyle=':')
    times.set(title='time relative to token by token', xlabel='tokens per window')
    metrics.set(
        title='contraction of the error per sweep', xlabel='convergence ranking metric (2505.12849)'
    )
    return picture
