"""Signals are remembered, and the pace leaves out what is not training."""

import signal

import pytest

from tarflow_jax.training import stopping
from tarflow_jax.training.stopping import Pace, Stop


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_remembered(number):
    with Stop() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number
        signal.raise_signal(signal.SIGTERM)


def test_a_second_ctrl_c_interrupts_at_once():
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.signal == signal.SIGINT


def test_afterwards_signals_do_what_they_did_before():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(RuntimeError), Stop():
        raise RuntimeError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_pace_leaves_out_the_start_and_pauses(monkeypatch):
    now = 0.0
    monkeypatch.setattr(stopping.time, 'perf_counter', lambda: now)
    pace = Pace(batch_size=10)
    assert pace.images_per_second() == 0
    for seconds in 100, 2, 2:  # the first step compiles
        now += seconds
        pace.step()
    assert pace.images_per_second() == 5
    pace.restart()
    for seconds in 100, 5:  # a pause before the first
        now += seconds
        pace.step()
    assert pace.images_per_second() == 2
    assert pace.images_per_second() == 0
