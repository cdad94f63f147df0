import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tarflow_jax.data.image_folder.workers import Stopped, Workers, check_stop
from tarflow_jax.errors import RunError

ROOT = pathlib.Path(__file__).parents[3]

WAIT_IN_WORKERS = """
import os, time
from tarflow_jax.data.image_folder.workers import Workers
if __name__ == '__main__':
    with Workers(2) as pool:
        for pid in pool.map(eval, ["__import__('os').getpid()"] * 2):
            print(pid, flush=True)
        time.sleep(600)
"""


def wait_or_work(task):
    """Waits until another worker began; or begins, and works for a minute in small pieces."""
    what, begun = task
    while what == 'wait' and not begun.exists():
        time.sleep(0.01)
    begun.touch()
    for _ in range(6000 if what == 'work' else 0):
        time.sleep(0.01)
        check_stop()
    return what


@pytest.mark.parametrize('count', [1, 2])
def test_every_task_has_a_result(count):
    with Workers(count) as pool:
        assert sorted(pool.map(abs, range(-20, 0))) == list(range(1, 21))
        assert sorted(pool.map(len, ['a', 'bc'])) == [1, 2]


@pytest.mark.parametrize('count', [1, 2])
def test_an_error_passes_through(count):
    with Workers(count) as pool, pytest.raises(ValueError, match='invalid literal'):
        list(pool.map(int, ['1', 'x']))


def test_a_killed_worker_is_told():
    with Workers(2) as pool, pytest.raises(RunError, match='a worker process was killed'):
        list(pool.map(os._exit, [9]))


def test_leaving_stops_the_work(tmp_path):
    begun = tmp_path / 'begun'
    start = time.monotonic()
    with Workers(2) as pool:
        results = pool.map(wait_or_work, [('wait', begun), ('work', begun)])
        assert next(results) == 'wait'
    assert time.monotonic() - start < 30


def test_nothing_is_stopped_outside_a_worker():
    assert check_stop() is None
    assert issubclass(Stopped, Exception)


def test_workers_end_with_a_killed_parent():
    command = [sys.executable, '-c', WAIT_IN_WORKERS]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    parent = subprocess.Popen(command, cwd=ROOT, **pipes)
    with parent:
        workers = {int(parent.stdout.readline()) for _ in range(2)}
        parent.kill()
    assert parent.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while any(pathlib.Path(f'/proc/{pid}').exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
