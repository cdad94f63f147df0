"""The largest batch that fits, in a few compilations."""

from collections.abc import Callable

from tarflow_jax.planning.compilation import Program

MAX_GUESSES = 4  # after the first batch
CLOSE_ENOUGH = 0.04  # of the batch, between what fits and what does not


def largest_batch(
    compile_batch: Callable[[int], Program],
    first_batch: int,
    unit: int,
    hbm_bytes: float,
    ceiling: int,
) -> tuple[int, int]:
    """Finds the largest batch that fits, by the memory that its compilation takes.

    Memory is nearly a + k b for b images, a line through the two compilations nearest to the limit;
    the first guess takes a to be the bytes of the state. Each guess is compiled and so confirmed.
    Batches are multiples of `unit`, none is above `ceiling`, and `hbm_bytes` is a device's memory.

    Returns:
      The largest batch that was seen to fit, and the smallest that was seen not to; 0 for none.
    """
    programs, batch = {}, first_batch
    for _ in range(1 + MAX_GUESSES):
        programs[batch] = compile_batch(batch)
        fitting = [b for b, p in programs.items() if p.fits and p.peak_bytes <= hbm_bytes]
        low = max(fitting, default=0)
        high = min(programs.keys() - fitting, default=0)
        if low >= ceiling or (high and high - low <= max(unit, CLOSE_ENOUGH * low)):
            break
        guess = _guess(programs, low, high, hbm_bytes) // unit * unit
        batch = min(max(guess, low + unit), high - unit if high else ceiling)
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
