"""The search for the largest batch, with a memory that is known."""

import pytest

from tarflow_jax.planning.compilation import Program
from tarflow_jax.planning.search import MAX_GUESSES, largest_batch

HBM = 16e9


def program(peak, tells_peak=True):
    fits = peak <= HBM
    return Program(fits, peak if fits or tells_peak else None, 2e9)


@pytest.mark.parametrize('first', [64, 640, 6400])
@pytest.mark.parametrize('tells_peak', [True, False])
@pytest.mark.parametrize('bend', [0.0, 3.0])
def test_finds_it_in_a_few_compilations(first, tells_peak, bend):
    def peak(batch):
        return 2.5e9 + 8e6 * batch + bend * batch**2

    compiled = []

    def compile_batch(batch):
        compiled.append(batch)
        return program(peak(batch), tells_peak)

    fits, too_large = largest_batch(compile_batch, first, 64, HBM, 64_000)
    assert fits % 64 == 0
    assert len(compiled) <= 1 + MAX_GUESSES
    assert peak(fits) <= HBM
    if too_large:
        assert peak(too_large) > HBM
    best = next(batch for batch in range(6400, 0, -64) if peak(batch) <= HBM)
    assert fits >= (0.9 if tells_peak or first < 6400 else 0.5) * best


def test_nothing_fits():
    assert largest_batch(lambda batch: program(20e9 + batch), 64, 64, HBM, 640)[0] == 0


def test_what_is_put_aside_is_not_used():
    fits, too_large = largest_batch(lambda batch: program(1e9 * batch), 8, 1, 10e9, 64)
    assert (fits, too_large) == (10, 11)


def test_nothing_above_the_ceiling_is_tried():
    compiled = []

    def compile_batch(batch):
        compiled.append(batch)
        return program(1e9)

    assert largest_batch(compile_batch, 64, 64, HBM, 640) == (640, 0)
    assert max(compiled) == 640
