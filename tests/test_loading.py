"""A model comes back from a workdir, a checkpoint, or a published file; or it is said why not."""

import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import ROOT, TIMEOUT, arrays_in, files_in

import tarflow_jax
from tarflow_jax import loading
from tarflow_jax.build import make_model
from tarflow_jax.errors import InputError


def assert_saved_as(arrays, item, params):
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    assert leaves
    for path, leaf in leaves:
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, arrays[f"['{item}']{jax.tree_util.keystr(path)}"])


@pytest.fixture
def workdir(whole, tmp_path):
    """A copy of the workdir of a run, to be damaged."""
    return shutil.copytree(whole[0], tmp_path / 'run')


def test_a_workdir(runs, whole):
    model, params = tarflow_jax.load(whole[0])
    assert model == make_model(runs.make_config().model)
    assert_saved_as(arrays_in(runs, whole[0], 24), 'ema_params', params)
    assert {d.id for leaf in jax.tree.leaves(params) for d in leaf.devices()} == {0}
    images = jnp.zeros((3, *model.image_shape))
    latents, log_det = model.apply({'params': params}, images, jnp.array([0, 9, -1]))
    assert latents.shape == images.shape
    assert log_det.shape == (3,)


def test_loading_leaves_the_process_as_it_was(whole, workdir):
    """Also where a checkpoint is damaged, about which Orbax has much to say.

    In a process that has loaded nothing before: what the first load leaves, a second does not show.
    """
    shutil.rmtree(workdir / 'checkpoints' / '24' / 'ema_params')
    process = multiprocessing.get_context('forkserver').Process(
        target=load_and_compare, args=(whole[0], workdir)
    )
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode == 0


def load_and_compare(*workdirs):
    before = state_of_the_process()
    for workdir in workdirs:
        tarflow_jax.load(workdir)
    assert state_of_the_process() == before


def test_loading_imports_only_what_a_model_needs(whole):
    """Not what reads data, trains, draws, or shares; Flax itself imports rich.

    libtpu, which JAX loads where no platform is named, does not complain that there is no TPU.
    """
    code = """if True:
        import sys, tarflow_jax
        flow = tarflow_jax.load(sys.argv[1])
        print(*sorted({name.partition('.')[0] for name in sys.modules}))
    """
    process = subprocess.run(
        [sys.executable, '-c', code, whole[0]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != 'JAX_PLATFORMS'},
    )
    assert 'TPU' not in process.stderr
    imported = process.stdout.split()
    assert 'orbax' in imported, process.stderr
    others = 'PIL array_record grain huggingface_hub matplotlib optax requests safetensors scipy'
    others += ' skimage sklearn tensorboardX tensorflow tensorflow_datasets torch tqdm'
    assert {*others.split()} & {*imported} == set()


def test_the_program_needs_no_extra():
    """But for the mode and the functions that say so."""
    extras = ['huggingface_hub', 'jupytext', 'libtpu', 'matplotlib', 'mkdocs']
    code = f'import sys; sys.modules |= dict.fromkeys({extras}); import tarflow_jax.modes'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def state_of_the_process():
    names = (None, 'absl', 'asyncio', 'jax', 'orbax', 'tarflow_jax')
    loggers = [logging.getLogger(name) for name in names]
    return (
        list(warnings.filters),
        [(logger.level, list(logger.filters), list(logger.handlers)) for logger in loggers],
        (sys.unraisablehook, sys.excepthook, threading.excepthook),
        dict(os.environ),
        [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)],
        jax.config.values,
    )


@pytest.mark.parametrize('attention', ['splash', 'cudnn'])
def test_what_was_trained_on_other_devices(workdir, whole, attention):
    config = json.loads((workdir / 'config.json').read_text())
    config['model']['attention'] = attention
    (workdir / 'config.json').write_text(json.dumps(config))
    model, params = tarflow_jax.load(workdir)
    assert model.attention == 'xla'
    jax.tree.map(np.testing.assert_array_equal, params, tarflow_jax.load(whole[0])[1])


def test_one_of_its_checkpoints(runs, whole):
    _, params = tarflow_jax.load(str(whole[0] / 'checkpoints' / '16'))
    assert_saved_as(arrays_in(runs, whole[0], 16), 'ema_params', params)


def test_without_an_average_the_parameters_are_taken(runs, workdir):
    config = json.loads((workdir / 'config.json').read_text())
    config['train']['ema_decay'] = 0.0
    (workdir / 'config.json').write_text(json.dumps(config))
    _, params = tarflow_jax.load(workdir)
    assert_saved_as(arrays_in(runs, workdir, 24), 'params', params)


def test_a_published_file(golden_dir):
    model, params = tarflow_jax.load(golden_dir / 'cond.pth', image_shape=(8, 8, 3), patch_size=2)
    sizes = (model.width, model.num_blocks, model.layers_per_block, model.num_classes)
    assert sizes == (64, 3, 2, 5)
    assert params['blocks']['pos_embed'].shape == (3, 16, 64)


def test_a_published_name_tells_what_the_tensors_do_not(golden_dir, tmp_path):
    path = shutil.copy(golden_dir / 'uncond.pth', tmp_path / 'mnist_model_2_128_2_1_0.10.pth')
    model, params = tarflow_jax.load(path)
    assert (model.image_shape, model.patch_size) == ((8, 8, 1), 2)
    given = tarflow_jax.load(golden_dir / 'uncond.pth', image_shape=(8, 8, 1), patch_size=2)
    assert model == given[0]
    jax.tree.map(np.testing.assert_array_equal, params, given[1])
    assert {d.id for leaf in jax.tree.leaves(params) for d in leaf.devices()} == {0}
    with pytest.raises(InputError, match='patch_size=2 by its name; got patch_size=4'):
        tarflow_jax.load(path, patch_size=4)


def test_a_published_name_that_says_otherwise(golden_dir, tmp_path):
    path = shutil.copy(golden_dir / 'uncond.pth', tmp_path / 'mnist_model_2_768_2_1_0.10.pth')
    with pytest.raises(InputError, match='width is 768 in its name and 128 in its tensors'):
        tarflow_jax.load(path)


def test_the_noise_and_the_data_set_of_a_model(golden_dir, whole, tmp_path):
    for path in whole[0], whole[0] / 'checkpoints' / '16':
        assert loading.read_noise(path) == ('gaussian', 0.1)
        assert loading.read_dataset_name(path) == 'digits'
    for path, noise, dataset in [
        (tmp_path / 'afhq_model_8_768_8_8_0.07.pth', ('gaussian', 0.07), 'afhq'),
        (tmp_path / 'imagenet64_model_2_768_8_8_uniform.pth', ('uniform', 0.0), 'imagenet64'),
        (golden_dir / 'cond.pth', None, None),
    ]:
        assert (loading.read_noise(path), loading.read_dataset_name(path)) == (noise, dataset)


def test_the_std_of_a_config_with_uniform_noise_means_nothing(workdir):
    config = json.loads((workdir / 'config.json').read_text())
    config['noise'] = {'type': 'uniform', 'std': 0.05}
    (workdir / 'config.json').write_text(json.dumps(config))
    assert loading.read_noise(workdir) == ('uniform', 0.0)


def test_a_published_file_needs_what_it_does_not_tell(golden_dir):
    with pytest.raises(InputError, match=r'give patch_size=P \(and image_shape=\(H, W, C\)'):
        tarflow_jax.load(golden_dir / 'cond.pth')
    with pytest.raises(InputError, match='16 tokens of 12 numbers'):
        tarflow_jax.load(golden_dir / 'cond.pth', image_shape=(8, 8, 1), patch_size=2)


def test_a_damaged_newest_checkpoint_is_named_and_left_as_it_is(runs, workdir, caplog):
    shutil.rmtree(workdir / 'checkpoints' / '24' / 'ema_params')
    before = files_in(workdir)
    _, params = tarflow_jax.load(workdir)
    assert_saved_as(arrays_in(runs, workdir, 16), 'ema_params', params)
    assert f'{workdir}/checkpoints/24 is damaged' in caplog.text
    assert files_in(workdir) == before


def test_a_damaged_checkpoint_that_was_asked_for_is_an_error(workdir):
    folder = workdir / 'checkpoints' / '24'
    shutil.rmtree(folder / 'ema_params')
    with pytest.raises(InputError, match=f'the checkpoint {folder} is damaged'):
        tarflow_jax.load(folder)


def test_damage_to_what_is_not_read_does_not_matter(runs, whole, workdir, caplog):
    shutil.rmtree(workdir / 'checkpoints' / '24' / 'opt_state')
    _, params = tarflow_jax.load(workdir)
    assert caplog.text == ''
    assert_saved_as(arrays_in(runs, whole[0], 24), 'ema_params', params)


def test_no_checkpoint_yet(workdir):
    shutil.rmtree(workdir / 'checkpoints')
    before = files_in(workdir)
    with pytest.raises(InputError, match=f'{workdir} has no checkpoint yet'):
        tarflow_jax.load(workdir)
    assert files_in(workdir) == before


def test_a_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(InputError, match=f'{tmp_path} is not a workdir'):
        tarflow_jax.load(tmp_path)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('', 'Expecting value'),
        ('{"model": {', 'Expecting property name'),
        ('[' * 100_000, 'it is nested too deeply'),
        ('9' * 5000, 'integer string conversion'),
        (' ' * 1_000_001, 'it has more than 1000000 bytes'),
        (b'\xff\xfe', "can't decode byte"),
        ('[]', 'it is not an object of sections'),
        ('null', 'it is not an object of sections'),
        ('{}', 'it has no model.image_shape'),
        ('{"model": {"width": 16}}', 'it has no model.image_shape'),
    ],
)
def test_a_damaged_config(workdir, content, words):
    content = content if isinstance(content, bytes) else content.encode()
    (workdir / 'config.json').write_bytes(content)
    for reader in tarflow_jax.load, loading.read_noise, loading.read_dataset_name:
        with pytest.raises(InputError, match=rf'config\.json is damaged: .*{words}.*(?<!\.)\.$'):
            reader(workdir)


@pytest.mark.parametrize(
    ('key', 'value', 'words'),
    [
        ('model', None, 'its section model is not an object'),
        ('model', 'TarFlow', 'its section model is not an object'),
        ('model', [8, 8, 1], 'its section model is not an object'),
        ('model.width', None, 'model.width must be a whole number; got None'),
        ('model.width', '16', "model.width must be a whole number; got '16'"),
        ('model.width', 16.5, 'model.width must be a whole number; got 16.5'),
        ('model.width', 10**30, 'model.width must be at most 1048576'),
        ('model.width', math.nan, 'NaN is not a value of JSON'),
        ('model.image_shape', '8,8,1', 'model.image_shape must be three positive whole numbers'),
        (
            'model.image_shape',
            [8, [8], 1],
            'model.image_shape must be three positive whole numbers',
        ),
        ('model.attention', ['xla'], 'model.attention must be one of xla, cudnn, splash, auto'),
        ('model.unroll', 'no', 'model.unroll must be one of none, blocks, all'),
        ('model.depth', 3, 'model.depth is unknown to this version'),
        ('train', None, 'its section train is not an object'),
        ('train', {}, 'it has no train.ema_decay'),
        ('train.ema_decay', '0', "train.ema_decay must be a number; got '0'"),
        ('train.ema_decay', -math.inf, '-Infinity is not a value of JSON'),
        ('train.log_every', {'a': {'b': 1}}, 'train.log_every is not a value of a config'),
        ('noise', [], 'its section noise is not an object'),
        ('noise', {'type': 'gaussian'}, 'it has no noise.std'),
        ('noise.std', None, 'noise.std must be a number; got None'),
        ('data', 'digits', 'its section data is not an object'),
        ('data.name', None, 'data.name must be a string; got None'),
        ('sample', 3, 'its section sample is not an object'),
    ],
)
def test_a_config_of_another_form(workdir, key, value, words):
    config = json.loads((workdir / 'config.json').read_text())
    section, _, key = key.partition('.')
    if key:
        config[section][key] = value
    else:
        config[section] = value
    (workdir / 'config.json').write_text(json.dumps(config))
    for reader in tarflow_jax.load, loading.read_noise, loading.read_dataset_name:
        with pytest.raises(InputError, match=r'config\.json is damaged: ' + words):
            reader(workdir)


def test_a_config_of_an_older_version(runs, whole, workdir):
    """Without keys and sections that came later, and with settings that no run may have now."""
    config = json.loads((workdir / 'config.json').read_text())
    for key in 'attention', 'remat', 'unroll', 'dtype':
        del config['model'][key]
    del config['mesh'], config['data']['workers'], config['evaluate']
    config['train']['log_every'] = 10**11
    config['sample']['guidance'] = None
    config['extra'] = [[[]]]
    (workdir / 'config.json').write_text(json.dumps(config))
    model, params = tarflow_jax.load(workdir)
    assert model == tarflow_jax.load(whole[0])[0]
    assert_saved_as(arrays_in(runs, whole[0], 24), 'ema_params', params)
    assert loading.read_noise(workdir) == ('gaussian', 0.1)


def test_what_is_no_file_is_no_config(workdir):
    (workdir / 'config.json').unlink()
    os.mkfifo(workdir / 'config.json')
    with pytest.raises(InputError, match=r'it has no config\.json'):
        tarflow_jax.load(workdir)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(path=3), 'path must be a string; got 3'),
        (dict(path=None), 'path must be a string; got None'),
        (dict(path=''), "path must be a path; got ''"),
        (dict(path='a\0b'), r"path must be a string; got 'a\\x00b'"),
        (dict(path='run\udcff'), 'path must be a string in UTF-8'),
        (dict(path='x' * 300), 'cannot be read: File name too long'),
        (dict(path='~nobody_of_this_name'), 'cannot be used: Could not determine home'),
        (dict(patch_size=2), 'patch_size is 4 in .*; got 2'),
        (dict(patch_size='4'), "patch_size must be a whole number; got '4'"),
        (dict(patch_size=0), 'patch_size must be at least 1; got 0'),
        (dict(image_shape=(16, 16, 1)), r'image_shape is \(8, 8, 1\) in .*; got \(16, 16, 1\)'),
        (dict(image_shape='8,8,1'), 'image_shape must be three positive whole numbers'),
    ],
)
def test_arguments_that_cannot_be(whole, arguments, words):
    with pytest.raises(InputError, match=words):
        tarflow_jax.load(**{'path': whole[0], **arguments})


def test_nothing_there(tmp_path):
    for path in tmp_path / 'none', tmp_path / 'checkpoints' / '8':
        with pytest.raises(InputError, match=f'{path}'):
            tarflow_jax.load(path, image_shape=(8, 8, 1), patch_size=2)
