"""What a wheel holds: the whole package, with its experiments, and a command that finds them."""

import os
import subprocess
import sys

import pytest
from runs import ROOT, TIMEOUT

BUILD = ['setup.py', '--quiet', 'egg_info', '--egg-base', '{}', 'build', '--build-base', '{}']


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A folder with the files of a wheel."""
    folder = tmp_path_factory.mktemp('built')
    command = [sys.executable, *(word.format(folder) for word in BUILD)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=TIMEOUT, capture_output=True)
    return folder / 'lib'


def test_a_wheel_has_every_module_and_every_experiment(installed):
    modules = {path.relative_to(ROOT) for path in ROOT.glob('tarflow_jax/**/*.py')}
    experiments = {path.relative_to(ROOT) for path in ROOT.glob('configs/*.py')}
    expected = {str(path) for path in modules} | {f'tarflow_jax/{path}' for path in experiments}
    assert {str(path.relative_to(installed)) for path in installed.rglob('*.py')} == expected


def test_the_command_finds_its_experiments_outside_the_clone(installed, tmp_path):
    environment = os.environ | {'PYTHONPATH': str(installed)}
    command = [sys.executable, '-m', 'tarflow_jax', '--config=photos:64p', '--workdir=run']
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert ended.returncode == 2
    assert 'there are 64, 64p4, 64p4w256, 256. See line' in ended.stderr
    assert f'{installed}/tarflow_jax/configs/photos.py.' in ended.stderr
