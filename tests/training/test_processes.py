"""Two processes, as on two hosts, train, sample and score what one does, and end together."""

import errno
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from runs import arrays_in, assert_same_run, files_in, free_port, metrics_in, steps_in

import tarflow_jax
from tarflow_jax.workdir import workdir_lock

FIRST_SAVE = ('os.mkdir', '/checkpoints', 1)  # of step 8: every process makes sure of the folder
BRIEF = '--config.train.num_epochs=0.5'  # 12 steps
SHARED = (BRIEF, '--config.mesh.data=1', '--config.mesh.fsdp=2')


@pytest.fixture(scope='module')
def one(runs, tmp_path_factory):
    """The workdir of one process with two devices, and what it printed; only to be read."""
    workdir = tmp_path_factory.mktemp('one')
    return workdir, runs.run(workdir, BRIEF, devices=2)


@pytest.fixture(scope='module')
def two(runs, tmp_path_factory):
    """The workdir of two processes with one device each, and what they printed."""
    workdir = tmp_path_factory.mktemp('two')
    return workdir, runs.run_many(2, workdir, BRIEF)


def test_two_train_as_one(runs, one, two):
    workdir, (main, second) = two
    assert_same_run(runs, workdir, one[0])
    assert [path.name for path in sorted(workdir.iterdir())] == [
        path.name for path in sorted(one[0].iterdir())
    ]
    assert main.out.splitlines()[0] == one[1].out.splitlines()[0].replace(str(one[0]), str(workdir))
    assert '\nTrained to step 12, saved in' in main.out
    assert main.err == second.out == second.err == ''


def test_what_two_saved_is_loaded_onto_one_device(runs, two):
    _, params = tarflow_jax.load(two[0])
    expected = arrays_in(runs, two[0], 12)
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    for path, leaf in leaves:
        assert leaf.devices() == {jax.devices()[0]}
        name = f"['ema_params']{jax.tree_util.keystr(path)}"
        np.testing.assert_array_equal(leaf, expected[name])


def test_a_signal_to_the_second_stops_both_and_one_goes_on(runs, one, tmp_path):
    at = {1: (*FIRST_SAVE, signal.SIGTERM)}
    main, second = runs.run_many(2, tmp_path, BRIEF, status=143, at=at)
    said = f'Stopped by SIGTERM at step 10. It is saved in {tmp_path}/checkpoints/10; '
    assert main.out.splitlines()[-1].startswith(said)
    assert main.err == second.out == second.err == ''
    assert steps_in(tmp_path) == [8, 10]
    runs.run(tmp_path, BRIEF, devices=2)
    assert_same_run(runs, tmp_path, one[0])


def test_one_is_stopped_and_two_go_on(runs, one, tmp_path):
    at = 'open', 'metrics.jsonl', 2, signal.SIGTERM
    runs.run(tmp_path, BRIEF, status=143, devices=2, at=at)
    assert steps_in(tmp_path) == [6]
    main, _ = runs.run_many(2, tmp_path, BRIEF)
    assert 'resuming from the checkpoint of step 6' in main.out
    assert_same_run(runs, tmp_path, one[0])


def test_processes_that_differ_are_told_in_what(runs, one, tmp_path):
    """In their configs, and in the checkpoints that they see."""
    coordinator = (f'--coordinator=127.0.0.1:{free_port()}', '--num_processes=2')
    started = [
        runs.start(tmp_path, *coordinator, f'--process_id={i}', f'--config.train.log_every={7 + i}')
        for i in range(2)
    ]
    for result in [run.wait() for run in started]:
        assert result.status == 1
        assert (
            'the processes of this run differ in config.train.log_every: process 0 has 7, pro'
            in (result.err)
        )
    assert not (tmp_path / 'config.json').exists()

    here, there = (shutil.copytree(one[0], tmp_path / name) for name in ('here', 'there'))
    shutil.rmtree(there / 'checkpoints' / '12')
    coordinator = (f'--coordinator=127.0.0.1:{free_port()}', '--num_processes=2')
    started = [
        runs.start(folder, *coordinator, f'--process_id={i}', '--config.train.num_epochs=2')
        for i, folder in enumerate((here, there))
    ]
    main, second = [run.wait() for run in started]
    assert (main.status, second.status) == (1, 1)
    for result in main, second:
        assert f'process 1 does not see {there}/checkpoints/12: do all hosts share' in result.err
    assert steps_in(here) == steps_in(one[0])


@pytest.fixture(scope='module')
def stopped(runs, tmp_path_factory):
    """The workdir of two processes that shared the parameters until Ctrl-C in the second."""
    workdir = tmp_path_factory.mktemp('stopped')
    main, _ = runs.run_many(2, workdir, *SHARED, status=130, at={1: (*FIRST_SAVE, signal.SIGINT)})
    assert main.out.splitlines()[-1].startswith('Stopped by SIGINT at step 10.')
    assert steps_in(workdir) == [8, 10]
    return workdir


def test_what_two_shared_is_gone_on_with_by_one_device(runs, one, stopped, tmp_path):
    workdir = shutil.copytree(stopped, tmp_path / 'run')
    _, params = tarflow_jax.load(workdir)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(params))
    runs.run(workdir, BRIEF)
    arrays, expected = (arrays_in(runs, folder, 12) for folder in (workdir, one[0]))
    for name, array in arrays.items():
        # Keys' biases have no gradient but rounding errors, of which Adam makes whole steps.
        atol = 1e-4 if "['qkv']['bias']" in name else 1e-5
        np.testing.assert_allclose(array, expected[name], atol=atol, err_msg=name)
    for line, of_one in zip(metrics_in(workdir), metrics_in(one[0]), strict=True):
        assert line == pytest.approx(of_one, abs=1e-5)


def test_damage_that_only_the_second_sees_is_damage_for_both(runs, stopped, tmp_path):
    workdir = shutil.copytree(stopped, tmp_path / 'run')
    for path in (workdir / 'checkpoints' / '10' / 'params' / 'ocdbt.process_1' / 'd').iterdir():
        os.truncate(path, 0)
    main, second = runs.run_many(2, workdir, *SHARED)
    damaged = [line for line in main.err.splitlines() if 'is damaged' in line]
    assert len(damaged) == 1, main.err
    assert f'{workdir}/checkpoints/10 is damaged (another process found damage)' in damaged[0]
    assert 'resuming from the checkpoint of step 8' in main.out
    assert second.err == ''
    assert steps_in(workdir) == [8, 12]
    assert (workdir / 'checkpoints' / '10.damaged').exists()


def test_two_sample_and_score_as_one(runs, one, tmp_path):
    flags = (
        *(f'--checkpoint={one[0]}', '--config.sample.num_samples=19'),
        *('--config.sample.denoise=true', '--config.sample.guidance=1'),
    )
    for mode in 'sample', 'evaluate':
        runs.run(tmp_path / 'one', f'--mode={mode}', *flags, devices=2)
        main, second = runs.run_many(2, tmp_path / 'two', f'--mode={mode}', *flags)
        assert main.out
        assert main.err == second.out == second.err == ''
    contents = [
        {str(path): content for path, (content, _) in files_in(tmp_path / name).items()}
        for name in ('one', 'two')
    ]
    assert contents[0].keys() == {
        *('evaluation.json', 'samples/samples.npz', 'samples/samples.png'),
        *(f'samples/samples_denoise-True_guidance1.{suffix}' for suffix in ('npz', 'png')),
    }
    evaluations = [json.loads(content.pop('evaluation.json')) for content in contents]
    assert all(evaluation.pop('date') and evaluation.pop('command') for evaluation in evaluations)
    assert evaluations[0] == evaluations[1]
    assert contents[0] == contents[1]


def test_two_calibrate_and_sample_as_one(runs, one, tmp_path):
    flags = (f'--checkpoint={one[0]}', '--config.sample.method=parallel')
    main, second = runs.run_many(2, tmp_path, '--mode=calibrate', *flags)
    assert '\nCalibrated in ' in main.out
    assert main.err == second.out == second.err == ''
    main, second = runs.run_many(2, tmp_path, '--mode=sample', *flags)
    assert main.err == second.out == second.err == ''
    runs.run(tmp_path / 'sequential', '--mode=sample', flags[0], devices=2)
    images, expected = (
        np.load(folder / 'samples' / 'samples.npz')['arr_0'].astype(int)
        for folder in (tmp_path, tmp_path / 'sequential')
    )
    assert np.abs(images - expected).max() <= 1  # at the edge between two levels


def test_where_one_is_refused_both_end(runs, tmp_path):
    with workdir_lock(tmp_path):
        main, second = runs.run_many(2, tmp_path, status=2)
    assert main.err.startswith(f'error: workdir {tmp_path} is in use by process ')
    assert second.err == main.err.replace('error: ', 'error: process 0 failed: ')


def test_where_one_fails_both_end(runs, tmp_path):
    """The first cannot write its samples, while the second waits for it in the next step."""
    (tmp_path / 'samples' / 'step_0000002.png').mkdir(parents=True)
    main, second = runs.run_many(2, tmp_path, '--config.train.sample_every=2', status=1)
    assert main.err.startswith(f'error: writing in {tmp_path} failed: ')
    assert f'error: process 0 failed: writing in {tmp_path} failed: ' in second.err


def test_where_one_cannot_save_both_end_with_its_words(runs, tmp_path):
    """More cases, and more processes, are in tests/failures_of_many.py."""
    full = ('call', 'training/checkpoint.py save', 2, OSError(errno.ENOSPC, 'The disk is full'))
    main, second = (run.wait() for run in runs.start_many(2, tmp_path, at={1: full}))
    assert (main.status, second.status) == (1, 1)
    assert main.err.startswith('error: process 1 failed: ')
    assert main.err.count('\n') == 1
    assert 'The disk is full' in main.err
    assert 'The disk is full' in second.err
    assert steps_in(tmp_path) == [8]
