"""Terminals close, readers go away, signals come early: the program goes on, or ends in words."""

import os
import pathlib
import pty
import signal
import subprocess
import sys

import pytest
from runs import COMMAND, ROOT, TIMEOUT, steps_in, wait_for

from tarflow_jax.terminal import SIGNALS

SPEAKS = """
import sys
from tarflow_jax import terminal
terminal.prepare()
print('one', flush=True)
print('two', flush=True)
print('three', file=sys.stderr)
with open(sys.argv[1], 'w') as file:
    assert file.fileno() > 2
    print('done', file=file)
"""
REDIRECTIONS = {
    '>&-': ('', 'three\n'),
    '2>&-': ('one\ntwo\n', ''),
    '<&-': ('one\ntwo\n', 'three\n'),
    '<&- >&- 2>&-': ('', ''),
    '>/dev/full': ('', 'three\n'),
    '| head -n 1': ('one\n', 'three\n'),
}


@pytest.mark.parametrize('redirection', REDIRECTIONS)
def test_output_that_goes_nowhere_stops_nothing(tmp_path, redirection):
    script = f'"$0" -c "$1" "$2" {redirection}; exit ${{PIPESTATUS[0]}}'
    command = ['bash', '-c', script, sys.executable, SPEAKS, tmp_path / 'file']
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert (ended.stdout, ended.stderr) == REDIRECTIONS[redirection]
    assert ended.returncode == 0
    assert (tmp_path / 'file').read_text() == 'done\n'


@pytest.mark.parametrize('redirection', ['| head -n 1', '<&- >&- 2>&-'])
def test_a_run_that_nobody_listens_to_trains_to_the_end(runs, tmp_path, redirection):
    words = [*COMMAND, f'--config={runs.config}', f'--workdir={tmp_path}/run']
    words += ['--config.train.log_every=1', '--config.train.num_epochs=0.3']
    script = f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}'
    ended = subprocess.run(
        ['bash', '-c', script, 'bash', *words],
        cwd=ROOT,
        env=os.environ | runs.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == 0
    assert ended.stderr == ''
    assert ended.stdout.count('\n') == ('head' in redirection)
    assert steps_in(tmp_path / 'run')[-1] == 8


LOG_IN = """
import fcntl, os, sys, termios

os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the terminal is that of this session
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_run_whose_terminal_is_closed_saves_itself(runs, tmp_path):
    """The kernel sends SIGHUP as the last one that holds the terminal lets it go."""
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            '-c',
            LOG_IN,
            *COMMAND,
            f'--config={runs.config}',
            f'--workdir={tmp_path}',
        ],
        cwd=ROOT,
        env=os.environ | runs.environment | {'TERM': 'xterm'},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b''
    while b'loss' not in shown:
        shown += os.read(main, 1000)
    os.close(main)
    assert process.wait(TIMEOUT) == 129
    assert steps_in(tmp_path)


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_in_the_first_seconds(tmp_path, number):
    process = subprocess.Popen(
        [*COMMAND, '--config=configs/digits.py', f'--workdir={tmp_path}/run'],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    status = pathlib.Path('/proc', str(process.pid))
    wait_for(lambda: b'tarflow_jax.main' in (status / 'cmdline').read_bytes())
    wait_for(lambda: 'numpy' in (status / 'maps').read_text())  # the imports are under way
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT)
    name = signal.Signals(number).name
    assert (process.returncode, out) == (128 + number, '')
    assert err == f'error: stopped by {name}. Run the same command again.\n'
    assert not (tmp_path / 'run').exists()
