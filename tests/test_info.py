"""`--mode=info`: what a workdir and an experiment are, in words; nothing is written."""

import json
import shutil

import jax
import pytest
from runs import files_in

import tarflow_jax
from tarflow_jax import info, loading
from tarflow_jax.configfile import ConfigFile
from tarflow_jax.trained_flow import TrainedFlow

NO_CONFIG = '--config='  # what `runs` leaves out


def test_a_workdir(runs, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    (workdir / 'evaluation.json').write_text(
        json.dumps({'test/accuracy': 0.5, 'step': 24, 'date': '2026-01-02'})
    )
    before = files_in(workdir)
    result = runs.run(workdir, NO_CONFIG, '--mode=info')
    assert files_in(workdir) == before
    assert result.err == ''
    lines = result.out.splitlines()
    assert lines[0] == f'Config: {workdir}/config.json'
    assert 'images       8x8 pixels of 1 channel, 10 classes' in lines
    assert 'tokens       4 of 16 numbers, patches of 4x4 pixels' in lines
    assert any(line.startswith('checkpoints  step 24  test ') for line in lines)
    assert sum(line.endswith('  (best)') for line in lines) == 1
    assert 'evaluation   of step 24, 2026-01-02\n             test/accuracy 0.5000' in result.out
    assert 'calibration  none (--mode=calibrate)' in result.out
    assert lines[-2:] == [
        f'  python -m tarflow_jax.main --workdir={workdir} --mode={mode}'
        for mode in ('sample', 'report')
    ]
    assert max(map(len, lines[1:-2])) <= 100


def test_a_checkpoint_and_what_is_handed_on(runs, whole, tmp_path):
    """What comes next names them, and what their config does not record is not made up."""
    step = f'--checkpoint={whole[0]}/checkpoints/16'
    result = runs.run('', NO_CONFIG, '--mode=info', step)
    assert 'checkpoints  step 24  test ' in result.out
    assert result.out.endswith(f'--workdir={whole[0]} {step} --mode=report\n')
    line = runs.refused(whole[0], NO_CONFIG, '--mode=info', '--checkpoint=/nowhere/16')
    assert line == 'error: /nowhere/16 does not exist.'

    folder = tarflow_jax.load(whole[0]).save_pretrained(tmp_path / 'published')
    lines = runs.run(folder, NO_CONFIG, '--mode=info').out.splitlines()
    assert {
        'data         digits',
        'training     elsewhere, and not recorded',
        'checkpoints  model.safetensors',
        f'  python -m tarflow_jax.main --workdir={folder} --mode=sample',
    } <= set(lines)


def test_a_model_of_unknown_data_and_noise(whole, tmp_path, capsys, caplog):
    trained = tarflow_jax.load(whole[0])
    folder = TrainedFlow(trained.model, trained.params).save_pretrained(tmp_path / 'own')
    config = ConfigFile().parse(str(folder / 'config.json'))
    info.show(config, folder)
    assert {
        'data         unnamed',
        'noise        not recorded; gaussian 0.05 is assumed',
    } <= set(capsys.readouterr().out.splitlines())
    loading.warn_of_noise_mismatch(config, folder)
    assert f'The model in {folder} does not record the noise' in caplog.text
    assert 'the gaussian noise of 0.05 of the config' in caplog.text


def test_the_config_of_another_workdir_is_repeated(runs, whole, tmp_path):
    config = f'--config={whole[0]}/config.json'
    result = runs.run('', NO_CONFIG, config, '--mode=info')
    assert result.out.endswith(f'  python -m tarflow_jax.main {config} --workdir=runs/NAME\n')


@pytest.mark.parametrize('name', ['digits', 'afhq256'])
def test_the_parameters_of_an_experiment_without_a_workdir(name, capsys):
    from tarflow_jax.build import make_model

    config = ConfigFile().parse(name)
    info.show(config, None)
    shapes = make_model({**config.model, 'attention': 'xla'}).param_shapes()
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    out = capsys.readouterr().out
    assert f'parameters   {count:,}, ' in out
    assert 'checkpoints' not in out


@pytest.mark.parametrize('name', ['evaluation.json', 'calibration.npz'])
def test_damaged_files_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(b'\0damage')
    facts = info.describe_workdir(tmp_path)
    words = {
        'evaluation.json': 'is damaged: ',
        'calibration.npz': 'is damaged (File is not a zip file)',
    }
    assert facts[name.partition('.')[0]].startswith(f'{tmp_path}/{name} {words[name]}')
    assert facts['checkpoints'] == 'none'
