"""Where a config comes from: an experiment's name or file, or what a workdir was trained with."""

import importlib
import json
import re

import pytest
from runs import ROOT

from tarflow_jax import configfile
from tarflow_jax.configfile import ConfigFile
from tarflow_jax.errors import InputError


# All but that of one's own images, which names a data set.
@pytest.mark.parametrize('name', sorted({*configfile.names()} - {'images'}))
def test_an_experiment_has_a_name(name):
    expected = importlib.import_module(f'configs.{name}').get_config()
    assert ConfigFile().parse(name).to_dict() == expected.to_dict()


def test_a_name_has_variants():
    assert ConfigFile().parse('photos:64p4').model.num_blocks == 8


@pytest.mark.parametrize('name', ['digit', 'configs/digit.py', 'nothing', 'nothing.py'])
def test_what_there_is_not_names_what_there_is(name):
    with pytest.raises(InputError, match=f'--config={re.escape(name)}: there is no ') as error:
        ConfigFile().parse(name)
    assert ', '.join(configfile.names()) in str(error.value)
    assert ('Did you mean --config=digits?' in str(error.value)) == ('digit' in name)


def test_a_file_of_ones_own_begins_with_ours_wherever_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(
        'from configs import digits\ndef get_config():\n    return digits.get_config()\n'
    )
    assert ConfigFile().parse('mine.py').data.name == 'digits'


def test_a_workdir_knows_its_config_with_types_and_tuples(runs, whole):
    config = ConfigFile().parse(f'{whole[0]}/config.json')
    assert config.to_dict() == runs.make_config(data__dir=config.data.dir).to_dict()
    assert config.is_locked
    with pytest.raises(TypeError):
        config.train.batch_size = 'many'


def test_keys_that_came_later_have_their_defaults(whole, tmp_path):
    record = json.loads((whole[0] / 'config.json').read_text())
    del record['train']['drop_label'], record['evaluate']
    record['train']['of_old'] = 3
    record['model']['unroll'] = True  # of when there were but two ways
    (tmp_path / 'config.json').write_text(json.dumps(record))
    config = ConfigFile().parse(f'{tmp_path}/config.json')
    assert config.train.drop_label == 0.1
    assert config.evaluate.num_samples == 50_000
    assert 'of_old' not in config.train
    assert config.model.unroll == 'all'

    record['train']['batch_size'] = 'many'
    (tmp_path / 'config.json').write_text(json.dumps(record))
    with pytest.raises(InputError, match=r'train\.batch_size must be a whole number'):
        ConfigFile().parse(f'{tmp_path}/config.json')


def test_every_experiment_of_the_clone_has_a_name():
    files = {path.stem for path in (ROOT / 'configs').glob('*.py')}
    assert {*configfile.names(), *configfile.SHARED} == files
