"""The command line: what it makes, and how it refuses."""

import json
import pickle
import re
import shutil
import signal
import zipfile

import numpy as np
import pytest
from runs import ROOT, TIMEOUT, files_in, metrics_in, steps_in, wait_until_held

import tarflow_jax
from tarflow_jax import main
from tarflow_jax.formats import torchfile

UNCONDITIONAL = [
    '--config.model.patch_size=2',
    '--config.model.width=128',
    '--config.model.head_dim=64',
    '--config.model.num_classes=0',
]
EXAMPLE = 'python -m tarflow_jax.main --config=configs/digits.py --workdir=runs/digits'


def test_samples(runs, whole, tmp_path):
    flags = ['--config.sample.num_samples=25', '--config.sample.denoise=true']
    result = runs.run(tmp_path, '--mode=sample', f'--checkpoint={whole[0]}', *flags)
    assert result.err == ''
    assert result.out.startswith('25 samples in ')
    assert result.out.endswith(f': {tmp_path}/samples/samples.npz, samples.png\n')
    assert [str(path) for path in files_in(tmp_path)] == [
        *('samples/samples.npz', 'samples/samples.png')
    ]
    with np.load(tmp_path / 'samples' / 'samples.npz') as arrays:
        assert sorted(arrays) == ['arr_0', 'arr_1']
        assert arrays['arr_0'].shape == (25, 8, 8, 1)
        assert arrays['arr_0'].dtype == np.uint8
        assert arrays['arr_0'].std() > 0
        np.testing.assert_array_equal(arrays['arr_1'], np.arange(25) % 10)
    assert (tmp_path / 'samples' / 'samples.png').read_bytes().startswith(b'\x89PNG')


def test_samples_and_scores_of_a_published_model_without_classes(runs, golden_dir, tmp_path):
    flags = [f'--checkpoint={golden_dir}/uncond.pth', *UNCONDITIONAL]
    how = ['--config.sample.guidance=0.5', '--config.sample.attention_temperature=0.5']
    runs.run(tmp_path, '--mode=sample', *flags, *how)
    with np.load(tmp_path / 'samples' / 'samples.npz') as arrays:
        assert sorted(arrays) == ['arr_0']
        assert arrays['arr_0'].shape == (16, 8, 8, 1)

    line = runs.refused(tmp_path, '--mode=evaluate', *flags)
    assert 'the model has no classes (model.num_classes=0): it cannot classify' in line
    runs.run(
        tmp_path, '--mode=evaluate', *flags, '--config.evaluate.metrics=bits_per_dim,nats_per_dim'
    )
    evaluation = json.loads((tmp_path / 'evaluation.json').read_text())
    scores = [evaluation[f'test/{name}'] for name in ('nats_per_dim', 'bits_per_dim')]
    assert np.isfinite(scores).all()


def test_scores(runs, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    before = files_in(workdir)
    result = runs.run(workdir, '--mode=evaluate')
    assert result.err == ''
    after = files_in(workdir)
    assert str(set(after) - set(before)) == "{PosixPath('evaluation.json')}"
    assert {path: after[path] for path in before} == before
    evaluation = json.loads((workdir / 'evaluation.json').read_text())
    last = metrics_in(workdir)[-1]
    for name in 'nats_per_dim', 'bits_per_dim':
        assert evaluation[f'test/{name}'] == last[f'test/{name}']
    assert evaluation['test/bits_per_dim_error'] > 0
    assert 0 <= evaluation['test/accuracy'] <= 1
    assert evaluation['test/cross_entropy'] == pytest.approx(np.log(10), rel=0.2)
    assert evaluation['splits']['num_images'] == {'test': 299}
    assert evaluation['checkpoint'] == str(workdir)
    assert len(evaluation['config_sha256']) == len(evaluation['params_sha256']) == 64
    assert evaluation['version'] == tarflow_jax.__version__
    for name in 'nats_per_dim', 'bits_per_dim', 'accuracy', 'cross_entropy':
        assert f'{f"test/{name}":32} {evaluation[f"test/{name}"]:.4f}\n' in result.out


def test_the_metrics_of_one_checkpoint_that_were_asked_for(runs, whole, tmp_path):
    flags = [
        f'--checkpoint={whole[0]}/checkpoints/16',
        '--config.evaluate.metrics=("bits_per_dim",)',
        '--config.evaluate.splits=test,train[:100]',
    ]
    runs.run(tmp_path, '--mode=evaluate', *flags)
    evaluation = json.loads((tmp_path / 'evaluation.json').read_text())
    (recorded,) = (
        line['test/bits_per_dim']
        for line in metrics_in(whole[0])
        if line['step'] == 16 and 'test/bits_per_dim' in line
    )
    assert evaluation['test/bits_per_dim'] == recorded
    assert evaluation['train[:100]/bits_per_dim'] != recorded
    assert evaluation['splits']['num_images'] == {'test': 299, 'train[:100]': 100}
    assert not {'test/nats_per_dim', 'test/accuracy'} & evaluation.keys()


def test_from_another_folder_by_python_itself_until_it_is_told_to_stop(runs, tmp_path):
    """`python -m` where there is no configs/, with values of every type, told while it compiles."""
    library = tmp_path / 'library'
    library.mkdir()
    (library / 'tarflow_jax').symlink_to(ROOT / 'tarflow_jax')
    workdir = tmp_path / 'run'
    flags = [
        *('--config', ROOT / 'configs' / 'digits.py', f'--workdir={workdir}'),
        *('--config.model.image_shape=(8,8,1)', '--config.model.patch_size=4'),
        *('--config.model.width=16', '--config.model.head_dim=8', '--config.model.unroll=False'),
        *('--config.model.num_blocks=2', '--config.model.layers_per_block=1'),
        *('--config.data.random_flip=true', '--config.optimizer.peak_learning_rate=1e-3'),
        *('--config.train.num_epochs=1e5', '--config.train.checkpoint_every=5'),
        *('--config.evaluate.metrics=("accuracy",)', '--config.noise.type=uniform'),
    ]
    process = runs.start_python(*flags, cwd=tmp_path, PYTHONPATH=str(library))
    with process:
        wait_until_held(workdir, process.pid)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143
    assert err == ''
    assert '\r' not in out
    assert '\x1b' not in out
    first, *_, last = out.splitlines()
    assert first.endswith(f'1,498 images of digits, 1 cpu device(s), workdir {workdir}')
    (step,) = steps_in(workdir)
    assert last == (
        f'Stopped by SIGTERM at step {step}. It is saved in {workdir}/checkpoints/{step}; the same '
        'command goes on from there.'
    )
    config = json.loads((workdir / 'config.json').read_text())
    assert config['model']['image_shape'] == [8, 8, 1]
    assert config['model']['unroll'] is False
    assert config['data']['random_flip'] is True
    assert config['optimizer']['peak_learning_rate'] == 1e-3
    assert config['train']['num_epochs'] == 1e5
    assert config['evaluate']['metrics'] == ['accuracy']


def test_a_published_checkpoint_becomes_a_workdir_and_comes_back(runs, golden_dir, tmp_path):
    tensors = torchfile.read_state_dict(golden_dir / 'uncond.pth')
    name = (
        f'rgb_model_{2}_{128}_{count(tensors, "blocks")}_{count(tensors, "attn_blocks")}_0.10.pth'
    )
    published = shutil.copy(golden_dir / 'uncond.pth', tmp_path / name)
    workdir = tmp_path / 'run'
    convert = ['--mode=convert', '--config=']
    result = runs.run(workdir, *convert, f'--checkpoint={published}')
    assert result.out.startswith(f'{workdir}: converted from {published}. Sample it with')
    assert result.err == ''

    result = runs.run(tmp_path / 'back', *convert, f'--checkpoint={workdir}')
    assert result.out == f'{tmp_path}/back/{name}: as the published code reads it\n'
    back = torchfile.read_state_dict(tmp_path / 'back' / name)
    assert list(back) == list(tensors)
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[key], err_msg=key)

    wrong = published.rename(tmp_path / name.replace('_128_', '_64_'))
    line = runs.refused(tmp_path / 'wrong', *convert, f'--checkpoint={wrong}')
    assert 'width is 64 in its name and 128 in its tensors' in line
    assert '--mode=convert needs --checkpoint' in runs.refused(tmp_path / 'none', *convert)
    line = runs.refused(workdir, *UNCONDITIONAL, '--config.evaluate.metrics=bits_per_dim')
    assert 'was converted from a published checkpoint' in line


def count(tensors, part):
    numbers = [int(n) for key in tensors for n in re.findall(rf'{part}\.(\d+)\.', key)]
    return max(numbers) + 1


def test_the_noise_of_another_model_is_told(runs, whole, tmp_path):
    result = runs.run(
        tmp_path, '--mode=sample', f'--checkpoint={whole[0]}', '--config.noise.std=0.3'
    )
    assert 'learned images with gaussian noise of 0.1; the config has gaussian' in result.err


REFUSED = {
    # Flags.
    '--workdir=': [f'--workdir must be given, for example: {EXAMPLE}'],
    '--wordir=x': ["Unknown command line flag 'wordir'. Did you mean: workdir"],
    'extra': ["'extra' is no flag; a setting is --config.section.key=value."],
    '--mode=draw': ['--mode=draw', 'one of <train|sample|evaluate|prepare_fid|convert|plan>'],
    '--workdir=gs://bucket/run': ['gs://bucket/run is an address', 'give a local path'],
    '--workdir=/dev/null': ['/dev/null cannot be written to', 'give a --workdir'],
    # Keys and their types.
    '--config.train.bath_size=3': ["no config key 'bath_size'; did you mean 'batch_size'?"],
    '--config.modle.width=3': ["no config key 'modle'; did you mean 'model'?"],
    '--config.train.zzz=3': ["no config key 'zzz'.", 'configs/base.py'],
    '--config.train.batch_size=many': ['--config.train.batch_size=many: invalid literal for int()'],
    '--config.train.batch_size=1.5': ['--config.train.batch_size=1.5', 'int()'],
    '--config.model.unroll=perhaps': ['--config.model.unroll=perhaps', 'Non-boolean'],
    '--config.optimizer.b1=high': ['--config.optimizer.b1=high', 'float'],
    '--config.train=3': ['--config.train=3'],
    # Values; `test_loop.py` has more.
    '--config.model.patch_size=3': ['8x8 pixels', '3x3', 'must divide', '1, 2, 4, 8'],
    '--config.data.name=digit': ["no data set 'digit'", "did you mean 'digits'?"],
    '--config.seed=-1': ['seed must lie in 0..2147483647; got -1'],
    '--config.sample.seed=99999999999': ['sample.seed must lie in', '99999999999'],
    # Checkpoints.
    '--checkpoint=/nowhere/x.pth': ['/nowhere/x.pth does not exist'],
    f'--checkpoint={__file__}': [f'{__file__} is not a checkpoint that can be read'],
    f'--checkpoint={ROOT}/tests/golden/cond.pth': [
        *('cond.pth is for 16 tokens of 12 numbers', 'image_shape=(8, 8, 1) with patch_size=4')
    ],
    # Where nothing was trained.
    '--mode=sample': ['does not exist: train there first'],
    '--mode=evaluate': ['does not exist: train there first'],
}


@pytest.mark.parametrize('flag', REFUSED)
def test_refused(runs, tmp_path, flag):
    line = runs.refused(tmp_path / 'run', flag)
    for words in REFUSED[flag]:
        assert words in line
    assert not any(path.name != '.lock' for path in tmp_path.rglob('*') if path.is_file())


def test_guidance_of_a_model_without_classes_at_temperature_one(runs, tmp_path):
    flags = ['--config.model.num_classes=0', '--config.sample.guidance=1.5']
    line = runs.refused(tmp_path, *flags)
    assert 'guidance=1.5 would change nothing: the model has no classes' in line
    assert 'attention_temperature' in line


@pytest.mark.parametrize('mode', ['sample', 'evaluate'])
def test_an_empty_workdir(runs, tmp_path, mode):
    line = runs.refused(tmp_path, f'--mode={mode}')
    assert f'{tmp_path} is not a workdir of a training run' in line
    assert 'Train one there first' in line


def test_evaluation_of_nothing_known(runs, whole, tmp_path):
    flags = ['--mode=evaluate', f'--checkpoint={whole[0]}']
    for asked in '("speed",)', '()':
        line = runs.refused(tmp_path, *flags, f'--config.evaluate.metrics={asked}')
        assert 'must name some of nats_per_dim, bits_per_dim, iw_bits_per_dim, accuracy' in line
    line = runs.refused(tmp_path, *flags, '--config.evaluate.num_draws=0')
    assert 'evaluate.num_draws must be at least 1; got 0' in line


@pytest.mark.parametrize('mode', ['train', 'sample', 'evaluate'])
def test_a_workdir_of_another_model(runs, whole, mode):
    flags = ['--config.model.width=32', '--config.model.num_blocks=3']
    line = runs.refused(whole[0], f'--mode={mode}', *flags)
    assert f'{whole[0]} holds another model' in line
    assert 'width is 16 there, 32 in the config' in line
    assert 'num_blocks is 2 there, 3 in the config' in line


def test_a_workdir_with_an_average_and_a_config_without(runs, whole):
    line = runs.refused(whole[0], '--config.train.ema_decay=0')
    assert 'train.ema_decay is 0.99 there, 0.0 in the config' in line


class RunsCode:
    def __reduce__(self):
        return (print, ('code was run',))


def test_a_checkpoint_that_tries_to_run_code(runs, tmp_path):
    path = tmp_path / 'evil.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('evil/data.pkl', pickle.dumps({'weight': RunsCode()}))
    line = runs.refused(tmp_path / 'run', '--mode=sample', f'--checkpoint={path}')
    assert f'{path} was not loaded: its pickle asks for ' in line
    assert 'could run code' in line


@pytest.mark.parametrize(
    ('source', 'words'),
    [
        (None, 'there is no file'),
        ('def get_config(:', 'SyntaxError: invalid syntax (experiment.py, line 1)'),
        ('import nowhere', "ModuleNotFoundError: No module named 'nowhere'. See line 1 of"),
        ('def get_config():\n    raise ValueError("no")', 'ValueError: no. See line 2 of'),
        ('x = 1', "has no attribute 'get_config'"),
        (
            'from configs import digits as d\n'
            'def get_config():\n    c = d.get_config(); c.train.bath_size = 1; return c',
            "there is no config key 'bath_size'; did you mean 'batch_size'?",
        ),
        (
            'from configs import digits as d\n'
            'def get_config():\n    c = d.get_config(); c.train.batch_size = "many"; return c',
            "Could not override field 'batch_size'",
        ),
    ],
)
def test_a_config_file_that_cannot_be_used(runs, tmp_path, source, words):
    path = tmp_path / 'experiment.py'
    if source:
        path.write_text(source)
    assert words in runs.refused(tmp_path / 'run', f'--config={path}')


def test_samples_that_are_not_finite_become_no_file_without_a_word(
    runs, golden_dir, tmp_path, caplog
):
    """Of a model that has diverged."""
    tensors = torchfile.read_state_dict(golden_dir / 'uncond.pth')
    for name, tensor in tensors.items():
        if 'proj_out' in name:
            tensors[name] = np.float32(1e6) * tensor
    torchfile.write_state_dict(tmp_path / 'diverged.pth', tensors)
    flags = ['--mode=sample', f'--checkpoint={tmp_path}/diverged.pth', *UNCONDITIONAL]
    result = runs.run(tmp_path / 'run', *flags, status=1)
    assert result.err.startswith('error: 16 of 16 samples are not finite after 10 draws of')
    assert not files_in(tmp_path / 'run')
    main.check_finite(np.array([True, False, True]))
    assert caplog.messages[0].startswith('1 of 3 samples are not finite after 10 draws')
