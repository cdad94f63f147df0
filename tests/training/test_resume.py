"""A run that was stopped, however that happened, ends as if nothing had happened."""

import shutil
import signal

import pytest
from damage import data_file, empty_the_folder, truncate_arrays
from runs import TOTAL_STEPS, arrays_in, assert_same_run, files_in, metrics_in, steps_in

from tarflow_jax.training.checkpoint import DamagedCheckpoint


def flip_a_bit_that_matters(runs, workdir, step):
    """The files have bytes that nobody reads, too."""
    path = data_file(workdir / 'checkpoints' / str(step) / 'params')
    sound = path.read_bytes()
    for sixteenth in range(15, 0, -1):
        damaged = bytearray(sound)
        damaged[len(sound) * sixteenth // 16] ^= 1
        path.write_bytes(damaged)
        try:
            arrays_in(runs, workdir, step)
        except DamagedCheckpoint:
            return
    raise AssertionError(f'no bit of {path} matters')


def test_killed_again_and_again(runs, whole, tmp_path):
    """In the middle of the first save; of the score and the samples; as a save becomes final."""

    def run_until(event, text):
        runs.run(tmp_path, status=-signal.SIGKILL, at=(event, text, 1, signal.SIGKILL))

    run_until('os.mkdir', 'checkpoints/8.orbax-checkpoint-tmp/params')
    assert steps_in(tmp_path) == []
    assert list((tmp_path / 'checkpoints').glob('8.*'))

    for unfinished in '16/metrics/.metrics', 'step_0000016.png':
        run_until('os.rename', unfinished)
        assert steps_in(tmp_path) == [8, 16]
        assert [values['step'] for values in metrics_in(tmp_path)] == [5, 10, 15, 16]
        assert not list((tmp_path / 'samples').glob('*.png'))

    run_until('os.rename', 'checkpoints/24.orbax-checkpoint-tmp')
    assert steps_in(tmp_path) == [8, 16]

    result = runs.run(tmp_path)
    assert 'resuming from the checkpoint of step 16' in result.out
    assert_same_run(runs, tmp_path, whole[0])
    folders = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
    assert folders == ['16', '24', '8']


def test_stopped_by_signals(runs, whole, tmp_path):
    """Before the first step, at an odd step, and where a score and samples are due."""

    def run_until(number, *moment):
        result = runs.run(tmp_path, status=128 + number, at=(*moment, number))
        assert result.err == ''
        return result.out.splitlines()[-1]

    said = run_until(signal.SIGTERM, 'os.rename', 'config.json', 1)
    assert said == (
        f'Stopped by SIGTERM at step 0. It is saved in {tmp_path}/checkpoints/0; '
        'the same command resumes from there.'
    )
    assert steps_in(tmp_path) == [0]

    # The third time that the record is opened, a line is added: that of step 5.
    said = run_until(signal.SIGTERM, 'open', 'metrics.jsonl', 3)
    assert said.startswith('Stopped by SIGTERM at step 6.')
    assert steps_in(tmp_path) == [0, 6]
    assert [values['step'] for values in metrics_in(tmp_path)] == [5]

    # The fourth time it is the line of step 15, written while step 16 is under way.
    said = run_until(signal.SIGINT, 'open', 'metrics.jsonl', 4)
    assert said.startswith('Stopped by SIGINT at step 16.')
    assert steps_in(tmp_path) == [0, 6, 8, 16]  # saved before the score, which was not made
    assert [values['step'] for values in metrics_in(tmp_path)] == [5, 10, 15]

    runs.run(tmp_path)
    assert_same_run(runs, tmp_path, whole[0])


def test_damaged_checkpoints_are_set_aside(runs, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    folder = workdir / 'checkpoints'
    flip_a_bit_that_matters(runs, workdir, 24)
    truncate_arrays(folder / '16')
    result = runs.run(workdir)
    damaged = [line for line in result.err.splitlines() if 'is damaged' in line]
    assert len(damaged) == 2, result.err
    for step, line in zip((24, 16), damaged, strict=True):
        assert f'{folder}/{step} is damaged' in line, result.err
    assert 'resuming from the checkpoint of step 8' in result.out
    assert_same_run(runs, workdir, whole[0])
    assert sorted(path.name for path in folder.iterdir()) == [
        *('16', '16.damaged', '24', '24.damaged', '8')
    ]


@pytest.mark.parametrize('mode', ['train', 'sample', 'evaluate'])
def test_nothing_but_damaged_checkpoints(runs, whole, tmp_path, mode):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    for folder in (workdir / 'checkpoints').iterdir():
        empty_the_folder(folder)
    before = files_in(workdir)
    result = runs.run(workdir, f'--mode={mode}', status=2)
    assert files_in(workdir) == before
    assert steps_in(workdir) == [8, 16, 24]
    assert result.out == ''
    assert result.err.splitlines()[-1] == (
        f'error: all checkpoints in {workdir}/checkpoints are damaged: [8, 16, 24]. To start '
        'again, give another --workdir (or move that folder away).'
    )


def test_a_full_disk_during_a_save(runs, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    for step in 16, 24:
        shutil.rmtree(workdir / 'checkpoints' / str(step))
    # Everything but the optimizer's arrays, of 13 KB, finds room.
    result = runs.run(workdir, status=1, file_size=9_000)
    line, end = result.err[:-1], result.err[-1:]
    assert line.startswith(f'error: saving a checkpoint in {workdir}/checkpoints failed: ')
    assert 'The last good one, of step 8, is untouched.' in line
    assert 'is the disk full?' in line
    assert '\n' not in line
    assert end == '\n'
    assert steps_in(workdir) == [8]
    arrays, expected = arrays_in(runs, workdir, 8), arrays_in(runs, whole[0], 8)
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_a_folder_that_cannot_be_written_any_more_ends_the_run(runs, whole, tmp_path):
    """The first save fails before Orbax has begun to write."""
    checkpoints = tmp_path / 'checkpoints'
    checkpoints.mkdir()
    run = runs.start(tmp_path, mortal=True, at=('os.rename', 'config.json', 1, signal.SIGSTOP))
    run.wait_until_paused()
    checkpoints.chmod(0o500)
    run.signal(signal.SIGCONT)
    result = run.wait()
    assert result.status == 1
    assert result.err == (
        f'error: saving a checkpoint in {checkpoints} failed: Permission denied. There is no '
        'earlier one. Fix the cause and run the same command.\n'
    )
    checkpoints.chmod(0o700)
    runs.run(tmp_path)
    assert_same_run(runs, tmp_path, whole[0])


@pytest.mark.parametrize('name', ['checkpoints', 'samples', 'tensorboard'])
@pytest.mark.parametrize('way', ['a file', 'no permission'])
def test_a_folder_that_cannot_be_written_is_named_before_the_first_step(runs, tmp_path, name, way):
    folder = tmp_path / name
    if way == 'a file':
        folder.touch()
        reason = 'another file or folder is in the way: move it away'
    else:
        folder.mkdir(0o500)
        reason = 'Permission denied'
    result = runs.run(tmp_path, status=2, mortal=True)
    assert result.out == ''
    assert result.err.startswith(f'error: {folder} cannot be written to: ')
    assert reason in result.err
    assert result.err.endswith('or give another --workdir.\n')
    assert 'disk full' not in result.err
    assert {path.name for path in tmp_path.iterdir()} == {'.lock', name}


def test_a_full_disk_when_metrics_are_written(runs, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    shutil.rmtree(workdir / 'checkpoints' / '24')
    lines = len((workdir / 'metrics.jsonl').read_bytes())
    result = runs.run(workdir, status=1, file_size=lines - 150)
    assert result.err.startswith(f'error: writing in {workdir} failed: ')
    assert result.err.count('\n') == 1
    assert steps_in(workdir) == [8, 16]


def test_a_run_that_is_done_says_so(runs, whole):
    before = files_in(whole[0])
    result = runs.run(whole[0])
    assert result.out.startswith(
        f'{whole[0]} is trained to step {TOTAL_STEPS} of {TOTAL_STEPS} already; '
        f'raise train.num_epochs above {TOTAL_STEPS * 64 / 1498:.4g} to train longer.\nNext:\n'
    )
    assert result.err == ''
    assert files_in(whole[0]) == before


def test_more_epochs_go_on_from_the_end(runs, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    result = runs.run(workdir, '--config.train.num_epochs=1.05')
    assert 'train.num_epochs was 1.0, is 1.05 now.' in result.err
    assert f'resuming from the checkpoint of step {TOTAL_STEPS}' in result.out
    assert '\nTrained to step 25, saved in' in result.out
    before = metrics_in(whole[0])
    assert metrics_in(workdir)[: len(before)] == before
    assert metrics_in(workdir)[-1].keys() == {'step', 'test/nats_per_dim', 'test/bits_per_dim'}
    assert steps_in(workdir) == [8, 16, 24, 25]
