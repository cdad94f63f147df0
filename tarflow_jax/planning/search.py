"""The largest batch that fits, in a few compilations."""

from collections.abc import Callable

from tarflow_jax.planning.compilation import Program

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
    """Finds the largest batch that fits, by the memory that its compilation takes.

    Memory is nearly a + k b for b images, a line through the two compilations nearest to the limit;
    the first guess takes a to be the bytes of the state. Each guess is compiled and so confirmed.

    Args:
      compile_batch: compiles the step for a batch.
      first: the program for `first_batch` images.
      first_batch: a multiple of `unit`.
      unit: images that a batch is a multiple of.
      hbm_bytes: memory of a device.
      ceiling: the largest batch to try, a multiple of `unit`.

    Returns:
      The largest batch that a compilation showed to fit, and the smallest that one showed not to
      fit; 0 for none.
    """
    programs = {first_batch: first}
    for _ in range(MOST_COMPILATIONS):
        low, high = _bounds(programs)
        if low >= ceiling or (high and high - low <= max(unit, CLOSE_ENOUGH * low)):
            break
        guess = _guess(programs, low, high, hbm_bytes) // unit * unit
        batch = min(max(guess, low + unit), high - unit if high else ceiling)
        programs[batch] = compile_batch(batch)
    return _bounds(programs)


def _bounds(programs: dict[int, Program]) -> tuple[int, int]:
    low = max((batch for batch, program in programs.items() if program.fits), default=0)
    high = min((batch for batch, program in programs.items() if not program.fits), default=0)
    return low, high


def _guess(programs: dict[int, Program], low: int, high: int, hbm_bytes: float) -> int:
    """The batch at which the line of memory meets the limit; the middle if there is no line."""
    state_bytes = max(program.argument_bytes for program in programs.values())
    known = [(batch, p.peak_bytes) for batch, p in programs.items() if p.peak_bytes]
    points = sorted(sorted(known, key=lambda point: abs(point[1] - hbm_bytes))[:2])
    if len(points) < 2:
        points = [(0, state_bytes), *points]
    if len(points) < 2 or points[1][1] <= points[0][1]:
        return (low + high) // 2 if high else 2 * low
    (b0, m0), (b1, m1) = points
    return int(b0 + (hbm_bytes - m0) * (b1 - b0) / (m1 - m0))
