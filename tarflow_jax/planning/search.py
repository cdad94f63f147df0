"""The largest batch that fits, in a few compilations."""

from collections.abc import Callable

from tarflow_jax.planning.programs import Program

MOST_COMPILATIONS = 4
CLOSE_ENOUGH = 0.04  # of the batch, between what fits and what does not


def largest_batch(
    compile_batch: Callable[[int], Program],
    first: Program,
    first_batch: int,
    unit: int,
    hbm_bytes: float,
    ceiling: int,
) -> tuple[int, int]:
    """Finds the largest batch that fits, by what compilations say it takes.

    Memory is nearly a + k b for b images, a line through the last two compilations; the first guess
    takes a to be the bytes of the state. Each guess is compiled, so that the answer is confirmed.

    Args:
      compile_batch: compiles the step for a batch.
      first: the program for `first_batch` images.
      first_batch: a multiple of `unit`.
      unit: images that a batch is a multiple of.
      hbm_bytes: memory of a device.
      ceiling: nothing larger is tried; a multiple of `unit`.

    Returns:
      The largest batch that was seen to fit, 0 for none, and the smallest that was seen not to fit
      (0 for none): in between nothing is known.
    """
    programs = {first_batch: first}
    state_bytes = first.argument_bytes or 0.0
    for _ in range(MOST_COMPILATIONS):
        low = max((b for b, program in programs.items() if program.fits), default=0)
        high = min((b for b, program in programs.items() if not program.fits), default=0)
        if high and high - low <= max(unit, CLOSE_ENOUGH * low):
            break
        if low >= ceiling:
            break
        batch = _guess(programs, state_bytes, low, high, hbm_bytes)
        batch = batch // unit * unit
        if high:
            batch = min(max(batch, low + unit), high - unit)
        elif batch <= low:
            batch = low + unit
        batch = min(batch, ceiling)
        if batch <= 0:
            break
        programs[batch] = compile_batch(batch)
        state_bytes = state_bytes or programs[batch].argument_bytes or 0.0
    fitting = [b for b, program in programs.items() if program.fits]
    too_large = [b for b, program in programs.items() if not program.fits]
    return max(fitting, default=0), min(too_large, default=0)


def _guess(programs, state_bytes, low, high, hbm_bytes) -> int:
    """Where the line of memory meets what there is; the middle if there is no line."""
    known = sorted((b, p.peak_bytes) for b, p in programs.items() if p.peak_bytes)
    nearest = sorted(known, key=lambda point: abs(point[1] - hbm_bytes))[:2]
    points = sorted(nearest) if len(nearest) == 2 else [(0, state_bytes), *known]
    if len(points) < 2 or points[1][1] <= points[0][1]:
        return (low + high) // 2 if high else 2 * low
    (b0, m0), (b1, m1) = points[:2]
    return int(b0 + (hbm_bytes - m0) * (b1 - b0) / (m1 - m0))
