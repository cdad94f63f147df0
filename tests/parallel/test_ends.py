"""One of four processes fails or is killed: all end soon, with its status and words.

TARFLOW_JAX_PROCESSES=8 sets another number of them.
"""

import functools
import os
import signal
import sys
import time

import pytest
from runs import free_port

from tarflow_jax.errors import InputError, RunError
from tarflow_jax.parallel import distributed

NUMBER = int(os.environ.get('TARFLOW_JAX_PROCESSES', 4))
ODD = ValueError('an odd number')


def add_up(process, failing=(), end=None):
    """Adds over all processes, for ever if one of them comes to an end."""
    turn = 0
    while failing or turn < 10:
        turn = distributed.all_max(turn) + 1
        if turn == 5 and process in failing:
            if isinstance(end, Exception):
                raise end
            os.kill(os.getpid(), end)
    return turn


def end_of_many(runs, failing, end):
    return runs.call_in_many(NUMBER, functools.partial(add_up, failing=failing, end=end))


@pytest.mark.parametrize('process', [0, 2])
@pytest.mark.parametrize(
    ('error', 'status', 'words'),
    [
        (InputError('No such thing.'), 2, 'No such thing.'),
        (RunError('No more.'), 1, 'No more.'),
        (ODD, 1, 'ValueError: an odd number'),
    ],
)
def test_all_end_as_the_one_that_failed(runs, process, error, status, words):
    results = end_of_many(runs, [process], error)
    assert [result.status for result in results] == [status] * NUMBER
    own = results.pop(process).err
    assert own.endswith(f'error: {words}\n')
    assert ('Traceback' in own) == (error is ODD)
    assert {result.err for result in results} == {f'error: process {process} failed: {words}\n'}


def test_where_several_fail_at_once_each_says_its_own(runs):
    results = end_of_many(runs, [0, 2, 3], ODD)
    assert [result.status for result in results] == [1] * NUMBER
    for process, result in enumerate(results):
        words = result.err.splitlines()[-1]
        assert words.startswith('error: ')
        assert words.endswith('ValueError: an odd number')
        assert ('failed: ' not in words) or process == 1 or result.err.count('\n') == 1


class SlowToTell(InputError):
    def __str__(self):
        time.sleep(1)
        return super().__str__()


def fail_one_after_another(process):
    add_up(process)
    if process == 0:
        raise SlowToTell('No such thing.')
    time.sleep(0.5)
    raise RunError('No more.')


def test_who_hears_of_a_failure_while_it_tells_its_own_tells_that_alone(runs):
    results = runs.call_in_many(2, fail_one_after_another)
    assert [(result.status, result.err) for result in results] == [
        (2, 'error: No such thing.\n'),
        (1, 'error: No more.\n'),
    ]


@pytest.mark.parametrize('process', [0, 2])
def test_all_end_where_one_is_killed(runs, process):
    results = end_of_many(runs, [process], signal.SIGKILL)
    assert results.pop(process).status == -signal.SIGKILL
    assert [result.status for result in results] == [1] * (NUMBER - 1)
    for result in results:
        assert result.err.startswith(f'error: process {process} exited without a message: it was')
        assert result.err.count('\n') == 1


def test_one_that_stops_is_waited_for(runs):
    running = runs.start_calls(NUMBER, functools.partial(stop_for_a_while, stopped=1))
    deadline = time.monotonic() + 30
    while running[1].out != 'stopping\n':
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(1)
    running[1].signal(signal.SIGCONT)
    results = [run.wait() for run in running]
    assert [(result.status, result.err) for result in results] == [(0, '')] * NUMBER


def stop_for_a_while(process, stopped):
    if process == stopped:
        print('stopping')
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGSTOP)
    return add_up(process)


def write_late(process, late):
    add_up(process)
    if process == late:
        time.sleep(1)
        raise RunError('No more.')


@pytest.mark.parametrize('late', [0, 3])
def test_those_that_are_done_hear_of_one_that_fails_later(runs, late):
    results = runs.call_in_many(NUMBER, functools.partial(write_late, late=late))
    assert [result.status for result in results] == [1] * NUMBER
    assert results[1].err == f'error: process {late} failed: No more.\n'


@pytest.mark.parametrize('process', [0, 2])
def test_a_mistake_in_the_flags_of_one_ends_all(runs, tmp_path, process):
    results = [
        run.wait() for run in runs.start_many(NUMBER, tmp_path, own={process: ['--config.no=1']})
    ]
    assert [result.status for result in results] == [2] * NUMBER
    words = "there is no config key 'no'"
    assert results.pop(process).err.startswith(f'error: {words}')
    for result in results:
        assert result.err.startswith(f'error: process {process} failed: {words}')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('flag', 'words'),
    [
        ('--num_processes=5', 'process 2 was started with --num_processes=5, process 0 with'),
        ('--process_id=1', '--process_id=1 is already in use'),
    ],
)
def test_processes_that_do_not_go_together(runs, tmp_path, flag, words):
    results = [run.wait() for run in runs.start_many(3, tmp_path, own={2: [flag]})]
    assert [result.status for result in results] == [2] * 3
    for result in results:
        assert result.err.startswith(f'error: {words}')


def test_a_stranger_at_the_port_changes_nothing(runs):
    results = runs.call_in_many(2, knock)
    assert [(result.status, result.err) for result in results] == [(0, '')] * 2


def knock(process):
    import socket

    address = ('127.0.0.1', distributed.broadcast_from_main(_port()))
    for words in b'', b'GET / HTTP/1.1\r\n\r\n', b'{"process": [], "of": 2}\n', b'\xff' * 2**17:
        with socket.create_connection(address) as connection:
            connection.sendall(words)
    return add_up(process)


def _port():
    return int(next(flag for flag in sys.argv if 'coordinator' in flag).rpartition(':')[2])


def test_proxies_are_not_asked(runs, monkeypatch):
    monkeypatch.setenv('http_proxy', f'http://127.0.0.1:{free_port()}')
    results = runs.call_in_many(2, with_proxy)
    assert [(result.status, result.err) for result in results] == [(0, '')] * 2


def with_proxy(process):
    return add_up(process)
