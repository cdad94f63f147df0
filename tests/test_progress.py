"""A bar that a terminal shows in one piece, and lines that a log file can keep."""

import fcntl
import io
import itertools
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import pytest

from tarflow_jax.progress import Progress

TRAIN = """
import logging
logging.basicConfig(format='%(message)s')  # keeps today's stderr, as log handlers do
from tarflow_jax.progress import Progress

with Progress(total_steps=2000) as progress:
    progress.print_line('said [bold]as it is[/bold]')
    for step in range(100, 2001, 100):
        progress.update(step, {'loss': -0.25, 'images_per_second': 12345.6, 'skipped_steps': 0})
        if step == 500:
            progress.print_line('step 500  test 0.1230 nats/dim  3.4500 bits/dim')
        if step == 1000:
            logging.warning('logged')
            print('printed')
logging.warning('logged afterwards')
"""

COUNT = """
from tarflow_jax.progress import count_progress
with count_progress('samples', 50) as progress:
    progress.update(40)
print('done')
"""

FAIL = """
from tarflow_jax.progress import Progress
with Progress(total_steps=2000) as progress:
    progress.update(100, {'loss': -0.25})
    raise RuntimeError('broken')
"""

WAIT_FOR_CTRL_C = """
import signal
from tarflow_jax.progress import Progress
try:
    with Progress(total_steps=2000) as progress:
        progress.update(100, {'loss': -0.25})
        progress.print_line('ready')
        while True:
            signal.pause()
except KeyboardInterrupt:
    print('left by Ctrl-C')
"""


class Screen:
    """As much of a terminal as the bar makes use of; keeps all lines that ever were."""

    def __init__(self, columns):
        self.columns = columns
        self.lines = ['']
        self.row = self.column = 0
        self.cursor_is_visible = True

    def show(self, output):
        for token in re.findall(r'\x1b\[[?\d;]*[A-Za-z]|[^\x1b]', output):
            if token == '\n':
                self.down()
            elif token == '\r':
                self.column = 0
            elif token == '\x1b[2K':
                self.lines[self.row] = ''
            elif re.fullmatch(r'\x1b\[\d+A', token):
                self.row -= int(token[2:-1])
            elif token in ('\x1b[?25l', '\x1b[?25h'):
                self.cursor_is_visible = token.endswith('h')
            elif not token.endswith('m') or len(token) == 1:
                self.put(token)

    def put(self, character):
        assert len(character) == 1, f'the screen does not know {character!r}'
        if self.column == self.columns:
            self.column = 0
            self.down()
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1

    def down(self):
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append('')


def run_in_terminal(script, columns=80, interrupt_at=None, **environment):
    """Runs a script in a pseudo-terminal; gives the raw output, and the screen it makes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('4H', 50, columns, 0, 0))
    known = {'TERM': 'xterm-256color', 'PYTHONIOENCODING': 'utf-8'}
    passed_on = {k: v for k, v in os.environ.items() if k not in ('NO_COLOR', 'COLUMNS', 'LINES')}
    process = subprocess.Popen(
        [sys.executable, '-c', script],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=passed_on | known | environment,
    )
    os.close(theirs)
    output = b''
    while chunk := read_or_nothing(ours):
        output += chunk
        if interrupt_at is not None and interrupt_at in output:
            process.send_signal(signal.SIGINT)
            interrupt_at = None
    os.close(ours)
    process.wait()
    screen = Screen(columns)
    screen.show(output.decode())
    return output.decode(), screen


def read_or_nothing(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so when the other side has gone
        return b''


def run_in_pipe(script):
    return subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, check=True
    ).stdout


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


def test_a_terminal_shows_one_bar_below_all_that_was_said():
    _, screen = run_in_terminal(TRAIN)
    *above, bar, below, end = screen.lines
    assert above == [
        'said [bold]as it is[/bold]',
        'step 500  test 0.1230 nats/dim  3.4500 bits/dim',
        'logged',
        'printed',
    ]
    assert re.fullmatch(r'step 2000/2000  ━+  loss -0.2500  12,346 images/s  in \d+s *', bar)
    assert (below, end) == ('logged afterwards', '')
    assert screen.cursor_is_visible


@pytest.mark.parametrize('columns', [12, 30, 50])
def test_a_narrow_terminal_has_a_shorter_bar_that_never_wraps(columns):
    _, screen = run_in_terminal(TRAIN, columns)
    bars = [line for line in screen.lines if '/2000' in line or '…' in line]
    assert len(bars) == 1
    assert len(bars[0]) <= columns
    assert ('loss -0.2500' in bars[0]) == (columns >= 30)


def test_skipped_steps_are_shown_once_there_are_any():
    script = TRAIN.replace("'skipped_steps': 0", "'skipped_steps': 3")
    _, screen = run_in_terminal(script, columns=120)
    assert any('loss -0.2500  3 skipped  12,346 images/s' in line for line in screen.lines)


def test_no_color_is_honoured():
    coloured = re.compile(r'\x1b\[[\d;]*3\d[\d;]*m')
    assert coloured.search(run_in_terminal(TRAIN)[0])
    output, screen = run_in_terminal(TRAIN, NO_COLOR='1')
    assert not coloured.search(output)
    assert any('━' in line for line in screen.lines)


def test_a_dumb_terminal_gets_plain_lines():
    output, _ = run_in_terminal(TRAIN, TERM='dumb')
    assert '\x1b' not in output
    assert 'step 2000/2000  loss -0.2500  12,346 images/s' in output


def test_an_exception_leaves_the_cursor_and_the_bar():
    _, screen = run_in_terminal(FAIL)
    assert screen.cursor_is_visible
    assert screen.lines[0].startswith('step  100/2000  ━')
    assert screen.lines[1] == 'Traceback (most recent call last):'
    assert screen.lines[-2:] == ['RuntimeError: broken', '']


def test_ctrl_c_leaves_the_cursor_and_the_bar():
    _, screen = run_in_terminal(WAIT_FOR_CTRL_C, interrupt_at=b'ready')
    assert screen.cursor_is_visible
    *above, bar, below, end = screen.lines
    assert set(above) == {'ready'}
    assert bar.startswith('step  100/2000  ━')
    assert (below, end) == ('left by Ctrl-C', '')


def test_a_pipe_gets_plain_lines():
    lines = run_in_pipe(TRAIN).splitlines()
    assert re.fullmatch(r'step 2000/2000  loss -0\.2500  12,346 images/s  in \d+s', lines.pop())
    assert re.fullmatch(r'step  100/2000  loss -0\.2500  12,346 images/s  in \d+s', lines.pop(1))
    assert lines == [
        'said [bold]as it is[/bold]',
        'step 500  test 0.1230 nats/dim  3.4500 bits/dim',
        'printed',
    ]


def test_lines_tell_the_time_left_at_the_pace_after_compiling():
    stream, clock = io.StringIO(), Clock()
    with Progress(2000, stream=stream, clock=clock) as progress:
        clock.now = 60.0  # the first step, compiling included
        progress.update(100, {'train/loss': -0.1234, 'train/images_per_second': 12345})
        clock.now = 80.0
        progress.update(1100)
        clock.now = 100.0
        progress.update(2000)
    assert stream.getvalue().splitlines() == [
        'step  100/2000  loss -0.1234  12,345 images/s  in 1m 00s',
        'step 1100/2000  loss -0.1234  12,345 images/s  18s left',
        'step 2000/2000  loss -0.1234  12,345 images/s  in 1m 40s',
    ]


def test_a_resumed_run_counts_only_its_own_steps():
    stream, clock = io.StringIO(), Clock()
    with Progress(2000, first_step=1000, stream=stream, clock=clock) as progress:
        progress.update(1100)
        clock.now = 10.0
        progress.update(1200)
    assert stream.getvalue().splitlines()[-1] == 'step 1200/2000  1m 20s left'


def test_lines_come_at_a_rhythm_and_the_last_state_is_never_missing():
    stream, clock = io.StringIO(), Clock()
    with Progress(1_000_000, stream=stream, clock=clock) as progress:
        for step in range(1, 86_400):
            clock.now = float(step)
            progress.update(step)
    steps = [int(line.split()[1].split('/')[0]) for line in stream.getvalue().splitlines()]
    pauses = [b - a for a, b in itertools.pairwise(steps)]
    assert steps[0] == 1
    assert pauses[0] == 5
    assert max(pauses) == 60
    assert len(steps) < 1600
    assert steps[-1] == 86_399


def test_nothing_is_said_of_a_run_without_steps():
    stream = io.StringIO()
    with Progress(100, first_step=100, stream=stream):
        pass
    assert stream.getvalue() == ''


def test_the_other_processes_show_nothing():
    stream = io.StringIO()
    with Progress(100, stream=stream, enabled=False) as progress:
        progress.print_line('a line')
        progress.update(100, {'loss': 0.5})
    assert stream.getvalue() == ''


def test_what_is_done_soon_leaves_no_line_and_what_takes_long_counts_batches():
    stream, clock, calls = io.StringIO(), Clock(), []
    with Progress(50, noun='samples', delay=10.0, stream=stream, clock=clock) as progress:
        before_batch = progress.before_batch(20, lambda: calls.append(clock.now))
        for seconds in (9, 8, 8):  # of 20, which wait for a compiler, of 20 and of 10
            before_batch()
            clock.now += seconds
        assert stream.getvalue() == 'samples 40/50  4s left\n'
    assert calls == [0, 9, 17]
    assert stream.getvalue().count('\n') == 1


def test_the_first_batch_does_not_tell_how_long_the_others_take():
    stream, clock = io.StringIO(), Clock()
    with Progress(50, noun='samples', delay=10.0, stream=stream, clock=clock) as progress:
        before_batch = progress.before_batch(20, lambda: None)
        for seconds in (60, 8, 8):
            before_batch()
            clock.now += seconds
    assert stream.getvalue() == 'samples 20/50  in 1m 00s\nsamples 40/50  4s left\n'


def test_the_bar_of_a_part_goes_when_the_part_is_over():
    output, _ = run_in_terminal(COUNT)
    bar, _, after = output.rpartition('samples 40/50')
    assert bar.startswith('\x1b[?25l')  # hides the cursor
    erased, _, rest = after.rpartition('\x1b[2K')
    assert erased
    assert rest.splitlines() == ['done']
