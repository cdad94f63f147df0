"""Signals are remembered, agreed upon, and end a process that does not come round."""

import os
import pty
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.stopping import SIGNALS, Stop, Stopped


@pytest.mark.parametrize('number', SIGNALS)
def test_the_first_signal_is_remembered(number):
    with Stop() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received == number
        signal.raise_signal(signal.SIGTERM)


def test_a_second_ctrl_c_interrupts_at_once():
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.received == signal.SIGINT


def test_alone_the_signal_received_is_the_one_agreed_upon():
    with Stop() as stop:
        stop.record(0)
        assert stop.signal is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM


def test_the_first_signal_that_a_step_reports_stops_all_processes(monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        stop.record(np.int32(0))
        assert stop.signal is None
        stop.record(np.int32(signal.SIGTERM))
        stop.record(np.int32(signal.SIGINT))
        assert stop.signal is signal.SIGTERM


@pytest.mark.parametrize('sizes', [{}, dict(data=2, fsdp=2, tensor=2)])
def test_every_device_is_told_the_signal(sizes):
    mesh = make_mesh(**sizes)
    with Stop() as stop:
        np.testing.assert_array_equal(stop.signal_array(mesh), np.zeros(8))
        signal.raise_signal(signal.SIGTERM)
        told = stop.signal_array(mesh)
    np.testing.assert_array_equal(told, np.full(8, 15))
    assert len({shard.device for shard in told.addressable_shards}) == 8
    assert told.addressable_shards[0].data.shape == (1,)


def test_afterwards_signals_do_what_they_did_before():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError), Stop():
        raise RuntimeError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_ignored_hangup_stays_ignored():
    """As nohup leaves it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_work_between_two_checks_ends_with_the_status_of_the_signal():
    with Stop() as stop:
        stop.check()
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(Stopped, match='stopped by SIGHUP') as stopped:
            stop.check()
    assert stopped.value.status == 129


STUCK = """
import os, signal, threading
import jax
from tarflow_jax import stopping

stopping.RESPONSE_SECONDS = 0.2
with stopping.Stop():
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    forever = jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 1, lambda x: x * 0, x))
    forever(0.0).block_until_ready()  # and meanwhile no handler of Python runs
"""


def test_a_process_that_does_not_come_round_is_ended():
    ended = subprocess.run([sys.executable, '-c', STUCK], capture_output=True, text=True)
    assert ended.returncode == 143
    assert ended.stderr.startswith(
        'error: stopped by SIGTERM. The running operation did not finish'
    )


def test_a_ctrl_c_is_answered_and_a_second_one_ends_it():
    script = STUCK.replace('0.2', '20').replace('SIGTERM', 'SIGINT')
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, '-c', script], stderr=theirs) as process:
        os.close(theirs)
        with open(ours, newline='') as terminal:
            assert terminal.readline() == (
                'Stopping when the operation on the device has ended, after at most 20 seconds. '
                'Ctrl-C again ends it immediately.\r\n'
            )
            process.send_signal(signal.SIGINT)
            last = terminal.readline()
    assert last.startswith('error: stopped by SIGINT. The running operation did not finish in time')
    assert process.returncode == 130


def test_work_with_nothing_to_save_ends_at_once():
    """At a signal that comes within it, or came before."""
    with Stop() as stop:
        with (
            stop.immediate(),
            pytest.raises(Stopped, match=r'SIGTERM. The same command starts again'),
        ):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match=r'SIGTERM. Resume'):
            stop.immediate('Resume.').__enter__()
