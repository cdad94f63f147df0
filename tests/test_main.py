"""The command line: what it makes, and how it refuses."""

import json
import pickle
import re
import shutil
import signal
import zipfile

import jax
import numpy as np
import pytest
from runs import ROOT, TIMEOUT, files_in, metrics_in, steps_in, wait_until_held

import tarflow_jax
from tarflow_jax.build import build
from tarflow_jax.configfile import ConfigFile
from tarflow_jax.errors import RunError
from tarflow_jax.formats import torchfile
from tarflow_jax.sampling import write

UNCONDITIONAL = [
    '--config.model.patch_size=2',
    '--config.model.width=128',
    '--config.model.head_dim=64',
    '--config.model.num_classes=0',
]
EXAMPLE = 'python -m tarflow_jax.main --config=digits --workdir=runs/digits'


def test_samples(runs, whole, tmp_path):
    flags = ['--config.sample.num_samples=25', '--config.sample.denoise=true']
    result = runs.run(tmp_path, '--mode=sample', f'--checkpoint={whole[0]}', *flags)
    assert result.err == ''
    assert '25 samples in ' in result.out
    written = f'{tmp_path}/samples/samples.npz, samples.png; kept as samples_denoise-True.*, too'
    assert f': {written}\nNext:\n' in result.out
    assert [str(path) for path in files_in(tmp_path)] == [
        *('samples/samples.npz', 'samples/samples.png'),
        *('samples/samples_denoise-True.npz', 'samples/samples_denoise-True.png'),
    ]
    with np.load(tmp_path / 'samples' / 'samples.npz') as arrays:
        assert sorted(arrays) == ['arr_0', 'arr_1']
        assert arrays['arr_0'].shape == (25, 8, 8, 1)
        assert arrays['arr_0'].dtype == np.uint8
        assert arrays['arr_0'].std() > 0
        np.testing.assert_array_equal(arrays['arr_1'], np.arange(25) % 10)
    assert (tmp_path / 'samples' / 'samples.png').read_bytes().startswith(b'\x89PNG')


def test_samples_with_a_certificate(runs, whole, tmp_path):
    flags = ['--config.sample.method=parallel', '--config.sample.certify=True']
    result = runs.run(tmp_path, '--mode=sample', f'--checkpoint={whole[0]}', *flags)
    with np.load(tmp_path / 'samples' / 'samples.npz') as arrays:
        residual = arrays['residual']
    assert residual.shape == (16,)
    assert (residual < 1.1e-3).all()
    assert (
        f'The largest residual is {residual.max():.1e} (tolerance 0.001); '
        '0 of 16 samples were solved again token by token.\n' in result.out
    )


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
        *('--config.model.width=16', '--config.model.head_dim=8', '--config.model.unroll=none'),
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
    assert first.endswith(f'1 cpu device(s), batches in 1 part(s), workdir {workdir}')
    (step,) = steps_in(workdir)
    assert last == (
        f'Stopped by SIGTERM at step {step}. It is saved in {workdir}/checkpoints/{step}; the same '
        'command resumes from there.'
    )
    config = json.loads((workdir / 'config.json').read_text())
    assert config['model']['image_shape'] == [8, 8, 1]
    assert config['model']['unroll'] == 'none'
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
    assert result.out == (
        f'{workdir}: converted from {published}.\nNext:\n'
        f'  python -m tarflow_jax.main --workdir={workdir} --mode=sample\n'
    )
    assert result.err == ''

    result = runs.run(tmp_path / 'back', *convert, f'--checkpoint={workdir}')
    words = 'in the format of the published code, which tarflow_jax.load reads, too'
    assert result.out == f'{tmp_path}/back/{name}: {words}\n'
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
    'extra': ["'extra' is not a flag; a setting is --config.section.key=value."],
    'evaluate': ["'evaluate' is not a flag; a mode is --mode=evaluate."],
    '--quick=maybe': ["--quick must be True or False; got 'maybe'"],
    '--process_id=first': ["--process_id must be a whole number; got 'first'"],
    '--mode=draw': [
        '--mode=draw',
        'one of <train|sample|evaluate|calibrate|prepare_fid|convert|plan|report|info>',
    ],
    '--workdir=gs://bucket/run': ['gs://bucket/run is a URL', 'give a local path'],
    '--workdir=/dev/null': ['/dev/null cannot be written to', 'give a --workdir'],
    # Keys and their types.
    '--config.train.bath_size=3': ["no config key 'bath_size'; did you mean 'batch_size'?"],
    '--config.modle.width=3': ["no config key 'modle'; did you mean 'model'?"],
    '--config.train.zzz=3': ["no config key 'zzz'.", 'configs/base.py'],
    '--config.train.batch_size=many': ["train.batch_size must be a whole number; got 'many'."],
    '--config.train.batch_size=1.5': ["train.batch_size must be a whole number; got '1.5'."],
    '--config.sample.denoise=perhaps': ["sample.denoise must be True or False; got 'perhaps'."],
    '--config.model.unroll=perhaps': ['model.unroll', 'none, blocks, all', 'perhaps'],
    '--config.optimizer.b1=high': ["optimizer.b1 must be a number; got 'high'."],
    '--config.train=3': ['--config.train=3'],
    '--config.=3': ["there is no config key ''."],
    '--config.model.width.x=3': ["there is no config key 'model.width.x'."],
    '--config.seed=' + '9' * 5000: ['seed must be', '999', '9...'],
    '--config.data.dir=': ["data.dir must be a path; got ''"],
    '--config.data.dir=~nobody_of_this_name': ['data.dir ~nobody_of_this_name cannot be used'],
    '--workdir= ': ["--workdir must be a path; got ' '"],
    # Values; `test_loop.py` has more.
    '--config.model.patch_size=3': ['8x8 pixels', '3x3', 'must divide', '1, 2, 4, 8'],
    f'--config.data.name={"x" * 5000}': ["there is no data set 'xxx"],
    '--config.data.name=digit': ["no data set 'digit'", "did you mean 'digits'?"],
    '--config.seed=-1': ['seed must lie in 0..2147483647; got -1'],
    '--config.sample.seed=99999999999': ['sample.seed must be at most 2147483647', '99999999999'],
    '--config.model.image_shape=8.0,8.0,1.0': [
        *('model.image_shape must be three positive whole numbers', 'got (8.0, 8.0, 1.0)')
    ],
    "--config.model.image_shape=('8','8','1')": ["got ('8', '8', '1')"],
    '--config.model.image_shape=eight': ['model.image_shape'],
    '--config.model.image_shape=': ['model.image_shape'],
    '--config.model.image_shape=()': ['model.image_shape must be three', 'got ()'],
    '--config.train.num_epochs=1e300': ['train.num_epochs must be at most 1e+09; got 1e+300'],
    '--config.train.num_epochs=1e9': ['1e+09 would be 2.34e+10 steps; choose at most 9.17e+07.'],
    '--config.train.num_epochs=': ["train.num_epochs must be a number; got ''."],
    '--config.train.log_every=100000000000': ['train.log_every must be at most 2147483647'],
    '--config.sample.num_samples=1000000000000': ['num_samples must be at most 1000000000; got'],
    '--config.sample.num_samples=1e12': ["sample.num_samples must be a whole number; got '1e12'"],
    '--config.sample.guidance=inf': ['sample.guidance must be at most 1000; got inf'],
    '--config.sample.guidance=1e30': ['sample.guidance must be at most 1000; got 1e+30'],
    '--config.sample.attention_temperature=inf': ['must be at most 1000; got inf'],
    '--config.sample.prior_temperature=inf': ['must be at most 100; got inf'],
    '--config.optimizer.peak_learning_rate=inf': ['must be at most 1e+30; got inf'],
    '--config.optimizer.final_learning_rate=nan': ['must be at least 0; got nan'],
    '--config.optimizer.final_learning_rate=1': [
        *('optimizer.final_learning_rate 1.0 is above optimizer.peak_learning_rate 0.002',)
    ],
    '--config.optimizer.weight_decay=inf': ['weight_decay must be at most 1000; got inf'],
    '--config.optimizer.b1=nan': ['optimizer.b1 must lie in [0, 1); got nan'],
    '--config.noise.std=inf': ['noise.std must be at most 10; got inf'],
    '--config.data.workers=1000000': ['data.workers must be at most 1024; got 1000000'],
    '--config.mesh.data=-2': ['mesh.data must be at least -1; got -2'],
    # Flags that another mode reads.
    '--topology=v5e:8x8': [
        '--topology has no effect with --mode=train; it applies to --mode=plan.'
    ],
    '--quick': ['--quick has no effect with --mode=train'],
    # Checkpoints.
    '--checkpoint=/nowhere/x.pth': ['/nowhere/x.pth does not exist'],
    f'--checkpoint=/{"x" * 300}': ['xxx cannot be read: File name too long.'],
    '--checkpoint=~nobody_of_this_name/x': ['~nobody_of_this_name/x cannot be used: Could not'],
    '--checkpoint=run\udcff': ['must be a string in UTF-8 (set PYTHONUTF8=1', "got 'run\\udcff'"],
    '--workdir=run\udcff': ['--workdir must be a string in UTF-8 (set PYTHONUTF8=1'],
    '--config.data.name=\udcff': ['data.name must be a string in UTF-8'],
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


def test_guidance_of_samples_without_labels(runs, whole):
    flags = ['--config.sample.guidance=1', '--config.sample.labels=-1']
    for mode in 'sample', 'calibrate':
        line = runs.refused(whole[0], f'--mode={mode}', *flags)
        assert 'guidance=1.0 would change nothing: no image has a label' in line


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


@pytest.mark.parametrize('mode', ['sample', 'evaluate', 'report', 'info'])
def test_a_checkpoint_is_no_workdir(runs, whole, mode):
    """What is written there would be removed with it."""
    step = whole[0] / 'checkpoints' / '24'
    line = runs.refused(step, f'--mode={mode}')
    assert f'Give --workdir={whole[0]} --checkpoint={step}' in line
    assert not (step / 'samples').exists()


def test_a_checkpoint_is_found_however_it_is_named(runs, whole, tmp_path):
    """From its own folder, and by a link."""
    folder, link = whole[0] / 'checkpoints', tmp_path / 'best'
    link.symlink_to(folder / '24')
    for path, cwd, mode in (
        *(('24', folder, 'sample'), ('.', folder / '24', 'info'), (link, tmp_path, 'info')),
        (link, tmp_path, 'evaluate'),
    ):
        flags = (f'--checkpoint={path}', f'--workdir={tmp_path / "new"}', f'--mode={mode}')
        settings = ('--config.evaluate.metrics=nats_per_dim', '--config.sample.num_samples=2')
        process = runs.start_python(*flags, *settings, cwd=cwd)
        _, words = process.communicate()
        assert (process.returncode, words) == (0, ''), (path, mode)
    assert tarflow_jax.load(link).step == 24


def test_a_platform_that_is_not_there(runs, tmp_path):
    flags = (f'--config={runs.config}', f'--workdir={tmp_path}')
    process = runs.start_python(*flags, JAX_PLATFORMS='nonsense')
    _, words = process.communicate()
    assert process.returncode == 2
    assert words.startswith('error: JAX finds no device (JAX_PLATFORMS=nonsense): ')
    assert words.count('\n') == 1


def test_devices_that_do_not_start(monkeypatch):
    """No mistake of the command, which a launcher would not try again."""

    def fail():
        raise RuntimeError('Unable to initialize backend.\nmore')

    monkeypatch.setattr(jax, 'devices', fail)
    with pytest.raises(RunError, match=r'JAX cannot start its devices: Unable to .* backend\.$'):
        build(ConfigFile().parse('digits'))


@pytest.mark.parametrize('mode', ['train', 'sample', 'evaluate'])
def test_a_workdir_of_another_model(runs, whole, mode):
    flags = ['--config.model.width=32', '--config.model.num_blocks=3']
    line = runs.refused(whole[0], f'--mode={mode}', *flags)
    assert f'{whole[0]} holds another model' in line
    source = 'workdir' if mode == 'train' else 'checkpoint'
    assert f'width is 16 in the {source}, 32 in the config' in line
    assert f'num_blocks is 2 in the {source}, 3 in the config' in line


def test_a_workdir_with_an_average_and_a_config_without(runs, whole):
    line = runs.refused(whole[0], '--config.train.ema_decay=0')
    assert 'train.ema_decay is 0.99 in the workdir, 0.0 in the config' in line


CHANGES = {
    'seed': 1,
    'data.train_split': 'train[:1400]',
    'data.random_flip': 'true',
    'noise.std': 0.3,
    'optimizer.b1': 0.5,
    'train.batch_size': 32,
    'train.drop_label': 0.5,
    'train.ema_decay': 0.9,
}


def test_a_run_resumes_with_what_makes_it_only_if_a_change_is_meant(runs, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    changes = [f'--config.{key}={value}' for key, value in CHANGES.items()]
    line = runs.refused(workdir, *changes, '--config.train.num_epochs=3')
    assert f'{workdir} was trained with other settings: seed is 0 in the workdir, 1 in the' in line
    assert 'train.batch_size is 64 in the workdir, 32 in the config' in line
    assert 'add --allow_changes to resume from its checkpoint with the new ones.' in line
    for key in CHANGES:
        assert f'{key} is ' in line

    result = runs.run(
        workdir, '--allow_changes', '--config.noise.std=0.3', '--config.train.num_epochs=1.1'
    )
    assert 'resuming from the checkpoint of step 24' in result.out
    assert 'noise.std was 0.1, is 0.3 now.' in result.err
    assert json.loads((workdir / 'config.json').read_text())['noise']['std'] == 0.3
    line = runs.refused(workdir)
    assert 'noise.std is 0.3 in the workdir, 0.1 in the config' in line


def test_what_a_run_may_change_on_its_way(runs, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    config = json.loads((workdir / 'config.json').read_text())
    del config['train']['drop_label']  # as if the key had come later
    (workdir / 'config.json').write_text(json.dumps(config))
    changes = {
        'train.num_epochs': 1.1,
        'optimizer.peak_learning_rate': 1e-3,
        'optimizer.clip_norm': 0.5,
        'optimizer.warmup_steps': 3,
        'train.log_every': 7,
        'train.drop_label': 0.2,
        'train.microbatches': 2,
        'sample.num_samples': 4,
        'evaluate.seed': 3,
        'model.remat': 'full',
    }
    result = runs.run(workdir, *(f'--config.{key}={value}' for key, value in changes.items()))
    assert 'optimizer.clip_norm was 1.0, is 0.5 now.' in result.err
    assert 'drop_label' not in result.err
    assert 'Trained to step 26' in result.out


def test_a_checkpoint_for_a_run_that_has_its_own(runs, whole, tmp_path):
    """It must be there; it is not read, and that is said."""
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    line = runs.refused(workdir, '--checkpoint=/does/not/exist')
    assert '/does/not/exist does not exist' in line
    flags = [f'--checkpoint={whole[0]}', '--config.train.num_epochs=1.1']
    result = runs.run(workdir, *flags)
    assert 'resuming from the checkpoint of step 24' in result.out
    assert (
        f'{workdir} has checkpoints, from which training resumes; --checkpoint is ignored'
        in result.err
    )


class RunsCode:
    def __reduce__(self):
        return (print, ('code was run',))


def test_a_checkpoint_that_tries_to_run_code(runs, tmp_path):
    path = tmp_path / 'evil.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('evil/data.pkl', pickle.dumps({'weight': RunsCode()}))
    line = runs.refused(tmp_path / 'run', '--mode=sample', f'--checkpoint={path}')
    assert f'{path} was not loaded: its pickle names ' in line
    assert 'could run code' in line


DIGITS = 'from configs import digits as d\ndef get_config():\n    c = d.get_config(); '
BATH_SIZE = "there is no config key 'bath_size'; did you mean 'batch_size'?"


@pytest.mark.parametrize(
    ('source', 'words'),
    [
        (case[0], case[1:])
        for case in [
            (None, 'there is no file', 'These come with tarflow_jax: afhq256, digits,'),
            (
                'def get_config(:',
                'SyntaxError: invalid syntax (experiment.py, line 1). See line 1 of',
            ),
            ('\0', 'null bytes'),
            ('import nowhere', "ModuleNotFoundError: No module named 'nowhere'. See line 1 of"),
            ('open("/nowhere")', 'FileNotFoundError: [Errno 2] No such file or directory: '),
            ('import sys\nsys.exit(0)', 'SystemExit: 0. See line 2 of'),
            ('def get_config():\n    raise ValueError("no")', 'ValueError: no. See line 2 of'),
            (
                'def get_config():\n    return get_config()',
                'RecursionError: maximum recursion depth',
            ),
            ('x = 1', "has no attribute 'get_config'"),
            ('get_config = 3', "has no attribute 'get_config'"),
            (
                'def get_config():\n    pass',
                'get_config() returns None; it must return a ConfigDict',
            ),
            (
                'def get_config():\n    return {"seed": 1}',
                'get_config() returns a dict; it must return',
            ),
            (
                'from ml_collections import ConfigDict\nget_config = ConfigDict',
                'get_config() returns an empty ConfigDict; it must return a ConfigDict with the',
            ),
            (
                'from ml_collections import ConfigDict\n'
                'def get_config():\n    return ConfigDict({"seed": 1})',
                'the config has no model.image_shape. Start get_config() with base.get_config',
            ),
            ('def get_config(variant):\n    pass', 'get_config(variant) of', ' without a variant'),
            (
                f'{DIGITS}c.train.bath_size = 1; return c',
                BATH_SIZE,
                'See line 3 of',
                'experiment.py.',
            ),
            (f'{DIGITS}del c.mesh\n    return c', 'This ConfigDict is locked', 'See line 3 of'),
            (
                f'{DIGITS}c.unlock(); del c.mesh; return c',
                'the config has no mesh.data. Start get_config',
            ),
            (
                f'{DIGITS}c.unlock(); c.mesh.tenser = 1; return c',
                "there is no config key 'mesh.tenser'; did you mean 'mesh.tensor'?",
            ),
            (
                f'{DIGITS}c.train.batch_size = "many"; return c',
                "Could not override field 'batch_size'",
                'See line 3 of',
            ),
            (
                f'{DIGITS}return c.data.nmae',
                "no config key 'nmae'; did you mean 'name'?",
                'line 3 of',
            ),
        ]
    ],
)
def test_a_config_file_that_cannot_be_used(runs, tmp_path, source, words):
    path = tmp_path / 'experiment.py'
    if source:
        path.write_text(source)
    line = runs.refused(tmp_path / 'run', f'--config={path}')
    for part in words:
        assert part in line


def test_a_config_file_beside_another_with_a_mistake(runs, tmp_path):
    """The place is that of the mistake, even in the library's time."""
    folder = tmp_path / 'configs'
    folder.mkdir()
    (folder / 'shared.py').write_text('def learn(config):\n    config.lerning = 3\n')
    (folder / 'experiment.py').write_text(
        'from ml_collections import ConfigDict\nfrom configs import shared\n\n'
        'def get_config():\n    return shared.learn(ConfigDict().lock())\n'
    )
    line = runs.refused(tmp_path / 'run', f'--config={folder}/experiment.py')
    assert "there is no config key 'lerning'" in line
    assert line.endswith(f'See line 2 of {folder}/shared.py.')


def test_two_config_files(runs, tmp_path):
    line = runs.refused(tmp_path, f'--config={ROOT}/configs/digits.py', f'--config={__file__}')
    assert '--config is given twice; give it once.' in line


def test_a_variant_that_there_is_not(runs, tmp_path):
    line = runs.refused(tmp_path, f'--config={ROOT}/configs/digits.py:large')
    assert 'get_config() of' in line
    assert "cannot be called with the variant 'large'" in line
    line = runs.refused(tmp_path, f'--config={ROOT}/configs/photos.py:large')
    assert "there is no variant 'large'; there are 64, 64p4, 64p4w256, 256. See line" in line
    assert line.endswith(f'{ROOT}/configs/photos.py.')


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
    write.check_finite(np.array([True, False, True]))
    assert caplog.messages[0].startswith('1 of 3 samples are not finite after 10 draws')
