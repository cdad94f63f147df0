import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tarflow_jax.data.workers import map_unordered
from tarflow_jax.errors import RunError

ROOT = pathlib.Path(__file__).parents[2]

WAIT_IN_WORKERS = """
from tarflow_jax.data.workers import map_unordered
if __name__ == '__main__':
    tasks = ["__import__('os').getpid()"] * 2 + ["__import__('time').sleep(600)"] * 2
    with map_unordered(eval, tasks, workers=2) as pids:
        for pid in pids:
            print(pid, flush=True)
"""


def results(function, tasks, workers):
    with map_unordered(function, tasks, workers) as values:
        return sorted(values)


def wait_or_work(task):
    """Waits until another worker began; or begins, and works for ten minutes."""
    kind, begun = task
    while kind == 'wait' and not begun.exists():
        time.sleep(0.01)
    begun.touch()
    time.sleep(600 if kind == 'work' else 0)
    return kind


@pytest.mark.parametrize('workers', [1, 2])
def test_every_task_has_a_result(workers):
    assert results(abs, range(-20, 0), workers) == list(range(1, 21))
    assert results(len, ['a', 'bc'], workers) == [1, 2]
    assert results(len, [], workers) == []


@pytest.mark.parametrize('workers', [1, 2])
def test_an_error_passes_through(workers):
    with pytest.raises(ValueError, match='invalid literal'):
        results(int, ['1', 'x'], workers)


def test_a_killed_worker_is_an_error():
    with pytest.raises(RunError, match='a worker process was killed'):
        results(os._exit, [9], workers=2)


def test_leaving_the_context_ends_the_work(tmp_path):
    begun = tmp_path / 'begun'
    start = time.monotonic()
    tasks = [('wait', begun), ('work', begun)]
    with map_unordered(wait_or_work, tasks, workers=2) as results:
        assert next(results) == 'wait'
    assert time.monotonic() - start < 30


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
