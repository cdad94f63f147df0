"""The benchmarks run, and what they print and write agrees."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from runs import ROOT

from benchmarks import ours
from benchmarks.growth import AXES, Point, line, slope
from benchmarks.versus import difference
from benchmarks.workloads import WORKLOADS, Task, tasks_of


def test_the_table_its_json_and_its_picture(runs, tmp_path):
    files = tmp_path / 'speed.json', tmp_path / 'speed.png'
    result = subprocess.run(
        [
            *(sys.executable, '-m', 'benchmarks.speed', 'digits', '--rounds=1'),
            *('--tasks', 'likelihood', 'read', f'--data_dir={runs.data_dir}'),
            *(f'--json={files[0]}', f'--picture={files[1]}'),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ''
    written = json.loads(files[0].read_text())
    machine, _, _, *table = result.stdout.splitlines()
    assert machine == written['machine']
    likelihood, read = written['rows']
    assert [line.split(' | ')[1] for line in table] == ['likelihood 64', 'read 64']
    assert 0 < likelihood['seconds'] < likelihood['first_seconds']
    assert 0 < likelihood['share_of_ceiling'] < 1
    assert read['seconds_range'][0] <= read['seconds'] <= read['seconds_range'][1]
    with Image.open(files[1]) as picture:
        assert picture.width > 500


SMALL = dataclasses.replace(WORKLOADS['digits'], num_blocks=2, layers_per_block=1)


@pytest.mark.parametrize('task', tasks_of(SMALL), ids=str)
def test_every_task_runs(task, monkeypatch):
    """On the devices of this process."""
    monkeypatch.setattr(ours, 'CEILING_FLOPS', 1e8)
    side = ours.Ours(SMALL, Task(task.name, 8 * 8))
    result = getattr(side, task.name)()
    assert np.all(np.isfinite(result))
    assert side.flops() > 0
    assert side.ceiling() > 0


def test_sides_that_differ_are_told_by_how_much():
    answer = [np.array([1.0, 4.0]), np.array([8.0])]
    assert difference(answer, answer) == 0
    assert difference(answer, [np.array([1.0, 3.0]), np.array([8.0])]) == 0.25
    assert difference(answer[0], np.array([1.0, 4.4])) == pytest.approx(0.1)


def test_exponents():
    assert slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    points = {64: Point(0.1, 1e6, 0.25), 128: Point(0.2, 4e6, 0.5)}
    assert line('tokens', points) == '| tokens | 64, 128 | 0.1, 0.2 | 1.00 | 2.00 | 25% to 50% |'
    assert list(AXES['tokens']) == [64, 256, 1024, 4096]
