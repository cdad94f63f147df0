"""Published checkpoints become workdirs, and models of ours published checkpoints, or nothing."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
from runs import files_in

import tarflow_jax
from tarflow_jax import exchange, loading
from tarflow_jax.build import build
from tarflow_jax.errors import InputError
from tarflow_jax.formats.torchfile import read_state_dict
from tarflow_jax.report import run as report_of_run

NAME = 'toy_model_2_64_3_2_0.07.pth'
NOISE = ('gaussian', 0.07)


@pytest.fixture(scope='module')
def source(golden_dir, tmp_path_factory):
    """A published checkpoint with a published name; only to be read."""
    return shutil.copy(golden_dir / 'cond.pth', tmp_path_factory.mktemp('published') / NAME)


@pytest.fixture(scope='module')
def converted(source, tmp_path_factory):
    """The workdir made of it; only to be read."""
    return exchange.convert_to_workdir(
        source, tmp_path_factory.mktemp('converted') / 'a' / 'workdir'
    )


def test_a_workdir_holds_the_same_model_and_parameters(source, converted):
    model, params = tarflow_jax.load(source)
    for path in converted, converted / 'checkpoints' / '0':
        same_model, same_params = tarflow_jax.load(path)
        assert same_model == model
        jax.tree.map(np.testing.assert_array_equal, same_params, params)


def test_a_workdir_tells_where_it_is_from_and_of_which_noise(source, converted):
    config = json.loads((converted / 'config.json').read_text())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert config['converted_from'] == {'file': NAME, 'sha256': digest}
    assert config['noise'] == {'type': 'gaussian', 'std': 0.07}
    assert loading.read_noise(converted) == NOISE
    assert loading.read_dataset_name(converted) == 'toy'


def test_a_workdir_and_a_file_serve_a_run_of_that_model(runs, source, converted, one_device):
    config = runs.make_config(
        model__image_shape=(8, 8, 3),
        model__num_classes=5,
        model__patch_size=2,
        model__width=64,
        model__head_dim=64,
        model__num_blocks=3,
        model__layers_per_block=2,
    )
    _, expected = tarflow_jax.load(source)
    for path in converted, source:
        params, _ = loading.load_params(build(config, one_device.devices.flat), path)
        jax.tree.map(np.testing.assert_array_equal, params, expected)
    config.model.num_blocks = 4
    with pytest.raises(InputError, match='num_blocks is 3 in the checkpoint, 4 in the config'):
        loading.load_params(build(config, one_device.devices.flat), converted)


def test_a_file_of_another_name_needs_to_be_described(golden_dir, tmp_path):
    how = dict(image_shape=(8, 8, 3), patch_size=2)
    with pytest.raises(InputError, match='does not record its training noise'):
        exchange.convert_to_workdir(golden_dir / 'cond.pth', tmp_path / 'workdir', **how)
    assert list(tmp_path.iterdir()) == []
    noise = ('uniform', 0.3)
    workdir = exchange.convert_to_workdir(
        golden_dir / 'cond.pth', tmp_path / 'workdir', **how, noise=noise
    )
    assert loading.read_noise(workdir) == ('uniform', 0.0)
    assert loading.read_dataset_name(workdir) == ''


def test_noise_that_the_name_rounds_can_be_told(source, tmp_path):
    workdir = exchange.convert_to_workdir(source, tmp_path / 'workdir', noise=('gaussian', 0.0725))
    assert loading.read_noise(workdir) == ('gaussian', 0.0725)


@pytest.mark.parametrize(
    ('noise', 'message'),
    [
        (('gaussian', 0.1), r"has the noise \('gaussian', 0.07\); got \('gaussian', 0.1\)"),
        (('uniform', 0.0), r"has the noise \('gaussian', 0.07\); got \('uniform', 0.0\)"),
        (('gaussian', 0.0), r'noise\.std must be above 0'),
        (('salt', 0.1), r'noise\.type must be one of'),
    ],
)
def test_other_noise_is_refused(source, tmp_path, noise, message):
    with pytest.raises(InputError, match=message):
        exchange.convert_to_workdir(source, tmp_path / 'workdir', noise=noise)
    assert list(tmp_path.iterdir()) == []


def test_a_converted_model_is_not_reported_as_one_to_train(runs, converted, tmp_path):
    """Nor is it to be evaluated where its data have other splits, or are not there."""
    workdir = shutil.copytree(converted, tmp_path / 'run')
    words = f'Converted from {NAME}, which contains no training history.'
    assert words in ''.join(report_of_run.training(workdir).parts)
    result = runs.run(workdir, '--config=', '--mode=info')
    assert 'data         toy\n' in result.out
    assert f'training     that of {NAME}\n' in result.out
    result = runs.run(workdir, '--config=', '--mode=sample', '--config.sample.num_samples=2')
    assert '--mode=sample --config.sample.guidance=1' in result.out
    assert '--mode=evaluate' not in result.out


def test_a_workdir_that_holds_something_is_left_alone(source, converted):
    before = files_in(converted)
    with pytest.raises(InputError, match=f'{converted} is not empty'):
        exchange.convert_to_workdir(source, converted)
    with pytest.raises(InputError, match='is not empty'):
        exchange.convert_to_workdir(source, source)
    assert files_in(converted) == before


def test_an_empty_folder_will_do(source, tmp_path):
    (tmp_path / 'workdir').mkdir()
    assert tarflow_jax.load(exchange.convert_to_workdir(source, tmp_path / 'workdir'))


def test_what_cannot_be_read_leaves_nothing(source, tmp_path):
    damaged = tmp_path / 'toy_model_2_64_3_2_0.10.pth'
    damaged.write_bytes(source.read_bytes()[:100_000])
    for path, message in [
        (damaged, 'damaged: fetch it again'),
        (tmp_path / 'none_model_2_64_3_2_0.10.pth', 'does not exist'),
        (tmp_path, 'is a folder'),
    ]:
        with pytest.raises(InputError, match=message):
            exchange.convert_to_workdir(path, tmp_path / 'workdir')
    assert list(tmp_path.iterdir()) == [damaged]


def convert_and_be_killed(source, workdir, renamed):
    def hook(event, arguments):
        if event == 'os.rename' and str(arguments[0]).endswith(renamed):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    exchange.convert_to_workdir(source, workdir)


@pytest.mark.parametrize('renamed', ['checkpoint-tmp', 'workdir.unfinished'])
def test_a_conversion_that_was_killed_left_nothing_believed(runs, source, tmp_path, renamed):
    workdir = tmp_path / 'workdir'
    # From the server that `runs` has started, with everything imported.
    process = multiprocessing.get_context('forkserver').Process(
        target=convert_and_be_killed, args=(source, workdir, renamed)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ['.workdir.unfinished']
    with pytest.raises(InputError, match='does not exist'):
        tarflow_jax.load(workdir)

    tarflow_jax.load(exchange.convert_to_workdir(source, workdir))
    assert list(tmp_path.iterdir()) == [workdir]


def test_a_model_is_published_under_its_name(source, converted, tmp_path):
    path = exchange.convert_to_published(converted, tmp_path / 'out')
    assert path == tmp_path / 'out' / NAME
    written, published = read_state_dict(path), read_state_dict(source)
    assert list(written) == list(published)
    for name, tensor in published.items():
        np.testing.assert_array_equal(written[name], tensor, strict=True)


def test_a_file_that_is_there_is_left_alone(source):
    before = source.read_bytes()
    with pytest.raises(InputError, match=f'{NAME} already exists'):
        exchange.convert_to_published(source, source.parent)
    assert source.read_bytes() == before


def test_noise_that_the_name_rounds_is_told(source, tmp_path, caplog):
    workdir = exchange.convert_to_workdir(source, tmp_path / 'workdir', noise=('gaussian', 0.0725))
    path = exchange.convert_to_published(workdir, tmp_path, dataset='other')
    assert path.name == 'other_model_2_64_3_2_0.07.pth'
    assert f'The noise of 0.0725 is rounded in the name {path.name}' in caplog.text


def test_a_run_that_the_published_code_could_not_have_made_is_refused(whole, tmp_path):
    with pytest.raises(InputError, match='the published code supports head_dim=64 only; got 8'):
        exchange.convert_to_published(whole[0], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_file_does_not_tell_has_to_be_told(golden_dir, tmp_path):
    with pytest.raises(InputError, match='does not record its training noise'):
        exchange.convert_to_published(golden_dir / 'cond.pth', tmp_path)
    with pytest.raises(InputError, match='does not record its data set'):
        exchange.convert_to_published(golden_dir / 'cond.pth', tmp_path, noise=NOISE)
