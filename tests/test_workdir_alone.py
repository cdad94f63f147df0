"""A workdir that was trained has its config: --workdir=DIR says it all."""

import json
import shutil

import numpy as np

from tarflow_jax import modes
from tarflow_jax.training.checkpoint import newest_and_best

NO_CONFIG = '--config='  # what `runs` leaves out


def test_samples_of_a_workdir(runs, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    result = runs.run(workdir, NO_CONFIG, '--config.sample.num_samples=4', '--mode=sample')
    assert result.err == ''
    first, *_ = result.out.splitlines()
    assert first == f'Config: {workdir}/config.json, with sample.num_samples=4'
    with np.load(workdir / 'samples' / 'samples.npz') as arrays:
        assert arrays['arr_0'].shape == (4, 8, 8, 1)

    result = runs.run(tmp_path / 'other', NO_CONFIG, '--mode=sample', f'--checkpoint={workdir}')
    assert result.out.startswith(f'Config: {workdir}/config.json\n')
    assert (tmp_path / 'other' / 'samples' / 'samples.npz').exists()


def test_a_sweep_keeps_the_samples_of_each_setting(runs, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    flags = [NO_CONFIG, '--mode=sample', '--config.sample.num_samples=6']
    for change in 'guidance=0', 'guidance=1', 'labels=3,3,7':
        runs.run(workdir, *flags, f'--config.sample.{change}')
    arrays = {}
    for name in 'samples', 'samples_guidance0', 'samples_guidance1', 'samples_labels-3-3-7':
        assert (workdir / 'samples' / f'{name}.png').exists()
        with np.load(workdir / 'samples' / f'{name}.npz') as file:
            arrays[name] = dict(file)
    assert arrays['samples']['arr_1'].tolist() == [3, 3, 7, 3, 3, 7]
    assert arrays['samples_guidance0']['arr_1'].tolist() == [0, 1, 2, 3, 4, 5]
    images = {name: values['arr_0'] for name, values in arrays.items()}
    np.testing.assert_array_equal(images['samples'], images['samples_labels-3-3-7'])
    assert (images['samples_guidance0'] != images['samples_guidance1']).any()

    line = runs.refused(workdir, *flags[:1], '--config.sample.labels=3,12')
    assert 'labels 3,12: there is no class 12; the model has classes 0 to 9.' in line
    line = runs.refused(workdir, *flags[:1], '--config.sample.labels=three')
    assert "there is no class 'three'. There are 0, 1, 2," in line


def test_a_training_resumes(runs, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    result = runs.run(workdir, NO_CONFIG, '--config.train.num_epochs=1.1')
    assert 'resuming from the checkpoint of step 24' in result.out
    assert 'Trained to step 26' in result.out
    line = runs.refused(workdir, NO_CONFIG, '--config.train.bath_size=3')
    assert "no config key 'bath_size'; did you mean 'batch_size'?" in line
    result = runs.run(workdir, NO_CONFIG, '--config.train.batch_size=3', status=2)
    assert 'train.batch_size is 64 in the workdir, 3 in the config' in result.err


def test_nothing_is_known_of_an_empty_workdir(runs, whole, golden_dir, tmp_path):
    line = runs.refused(tmp_path, NO_CONFIG, '--config.seed=3')
    assert line.startswith(f'error: --config must be given ({tmp_path} has no config.json)')
    line = runs.refused(tmp_path, NO_CONFIG, '--mode=sample')
    assert f'{tmp_path} is not a workdir of a training run: it has no config.json' in line
    flags = [NO_CONFIG, '--mode=sample', f'--checkpoint={golden_dir}/cond.pth']
    line = runs.refused(tmp_path, *flags)
    assert f'--config is required: {golden_dir}/cond.pth does not contain all settings.' in line
    line = runs.refused(tmp_path / 'new', NO_CONFIG, f'--checkpoint={whole[0]}')
    assert line.startswith('error: --config must be given (')
    (tmp_path / 'model.pth').write_text('no checkpoint')
    for mode in 'info', 'sample', 'convert':
        flags = [NO_CONFIG, f'--mode={mode}', f'--checkpoint={tmp_path}/model.pth']
        line = runs.refused(tmp_path / 'new', *flags)
        assert 'model.pth is not a checkpoint that can be read' in line
    line = runs.refused(
        tmp_path, NO_CONFIG, '--mode=sample', f'--checkpoint={whole[0]}/checkpoints/5'
    )
    assert line.endswith('/checkpoints/5 does not exist. There are those of the steps 8, 16, 24.')


def test_the_best_checkpoint_is_among_the_next_commands_if_it_is_not_the_last(whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    newest, older = 24, 16
    for step, score in ((older, -9.0), (newest, 0.0)):
        file = workdir / 'checkpoints' / str(step) / 'metrics' / 'metrics'
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({'test/nats_per_dim': score}))
    assert newest_and_best(workdir) == (newest, older)
    assert modes.next_train_commands(workdir)[-1].endswith(
        f'--workdir={workdir} --checkpoint={workdir}/checkpoints/{older} --mode=sample'
    )
