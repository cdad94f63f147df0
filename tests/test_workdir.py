"""A workdir has one holder, none after a kill, and is no checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest

from tarflow_jax.errors import InputError
from tarflow_jax.workdir import check_no_checkpoint, workdir_lock

HOLD_THE_LOCK = """
import sys
from tarflow_jax.workdir import workdir_lock
with workdir_lock(sys.argv[1]):
    print('held', flush=True)
    sys.stdin.read()
"""


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_lock_makes_the_workdir_and_can_be_taken_again(tmp_path):
    for _ in range(2):
        with workdir_lock(tmp_path / 'runs' / 'one'):
            assert names_in(tmp_path / 'runs' / 'one') == ['.lock']


def test_the_lock_ends_with_an_exception(tmp_path):
    with pytest.raises(RuntimeError), workdir_lock(tmp_path):
        raise RuntimeError
    with workdir_lock(tmp_path):
        pass


def test_another_process_holds_the_lock_until_it_is_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, '-c', HOLD_THE_LOCK, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == 'held\n'
        with pytest.raises(InputError, match=f'process {holder.pid} on ') as caught:
            workdir_lock(tmp_path).__enter__()
        assert str(tmp_path) in str(caught.value)
        assert 'another --workdir' in str(caught.value)
        holder.kill()  # SIGKILL: it has no chance to clean up
        holder.wait()
        with workdir_lock(tmp_path):
            pass


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match=r'file cannot be written to \(File exists\)'):
        workdir_lock(tmp_path / 'file').__enter__()


def test_a_bucket_address_is_refused_rather_than_taken_for_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match='gs://bucket/run is a URL'):
        workdir_lock('gs://bucket/run').__enter__()
    assert names_in(tmp_path) == []


def test_a_checkpoint_of_nothing_may_be_a_workdir(tmp_path, monkeypatch):
    """A folder that a scheduler numbers, say."""
    folder = tmp_path / 'checkpoints' / '24'
    folder.mkdir(parents=True)
    check_no_checkpoint(folder)
    (tmp_path / 'config.json').write_text('{}')
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=f'Give --workdir={tmp_path} --checkpoint={folder}.'):
        check_no_checkpoint(Path())
