"""`--mode=info`: what a workdir and an experiment are, in words; nothing is written."""

import json
import shutil

import jax
import pytest
from runs import files_in

from tarflow_jax import info
from tarflow_jax.configfile import ConfigFile

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
    assert facts[name.partition('.')[0]].startswith(f'{tmp_path}/{name} cannot be read: ')
    assert facts['checkpoints'] == 'none'
