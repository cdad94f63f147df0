"""Signals are remembered, and the pace leaves out what is not training."""

import signal

import jax
import numpy as np
import pytest

from tarflow_jax.parallel.mesh import make_mesh
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


def test_alone_the_signal_received_is_the_one_agreed_upon():
    with Stop() as stop:
        stop.hear(0)
        assert stop.agreed is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.agreed == signal.SIGTERM


def test_the_first_signal_that_a_step_reports_stops_all_processes(monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        stop.hear(np.int32(0))
        assert stop.agreed is None
        stop.hear(np.int32(signal.SIGTERM))
        stop.hear(np.int32(signal.SIGINT))
        assert stop.agreed is signal.SIGTERM


@pytest.mark.parametrize('sizes', [{}, dict(data=2, fsdp=2, tensor=2)])
def test_every_device_is_told_the_signal(sizes):
    mesh = make_mesh(**sizes)
    with Stop() as stop:
        np.testing.assert_array_equal(stop.over(mesh), np.zeros(8))
        signal.raise_signal(signal.SIGTERM)
        told = stop.over(mesh)
    np.testing.assert_array_equal(told, np.full(8, 15))
    assert len({shard.device for shard in told.addressable_shards}) == 8
    assert told.addressable_shards[0].data.shape == (1,)


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
