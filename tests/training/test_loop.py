"""What a run leaves in its workdir, what it says, and how it gives up."""

import json
import math
import signal

import jax
import numpy as np
import pytest
from runs import (
    TOTAL_STEPS,
    arrays_in,
    assert_same_run,
    metrics_in,
    steps_in,
    wait_until_held,
)

from tarflow_jax.build import build
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.likelihood.scores import as_scored, score_split
from tarflow_jax.loading import load
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.stopping import Stop
from tarflow_jax.training import loop

TRAIN_KEYS = {'loss', 'grad_norm', 'learning_rate', 'skipped_steps', 'images_per_second'}


def test_the_files_of_a_run(whole):
    workdir, _ = whole
    assert sorted(path.name for path in workdir.iterdir()) == [
        *('.lock', 'checkpoints', 'config.json', 'metrics.jsonl', 'samples', 'tensorboard')
    ]
    assert steps_in(workdir) == [8, 16, 24]
    pictures = {path.name: path.read_bytes() for path in (workdir / 'samples').iterdir()}
    assert pictures.keys() == {'step_0000016.png', 'step_0000024.png'}
    assert all(content.startswith(b'\x89PNG') for content in pictures.values())
    (events,) = (workdir / 'tensorboard').iterdir()
    for name in b'train/loss', b'samples', b'data', b'config/text_summary', b'"weight_decay": ':
        assert name in events.read_bytes()


def test_the_lines_of_metrics(whole):
    lines = (whole[0] / 'metrics.jsonl').read_text().splitlines()
    values = [json.loads(line) for line in lines]
    assert [line['step'] for line in values] == [5, 10, 15, 16, 20, 24]
    for line in values:
        if line['step'] % 5 == 0:
            assert line.keys() == {'step', *(f'train/{key}' for key in TRAIN_KEYS)}
            assert line['train/skipped_steps'] == 0
        else:
            assert line.keys() == {'step', 'test/nats_per_dim', 'test/bits_per_dim'}
    assert values[-1]['test/nats_per_dim'] < values[3]['test/nats_per_dim']


def test_the_learning_rates_of_the_record_are_those_of_the_steps(whole):
    rates = {line['step']: line.get('train/learning_rate') for line in metrics_in(whole[0])}
    peak, floor, warmup = 2e-3, 1e-6, 5
    cosine = (1 + math.cos(math.pi * (20 - 1 - warmup) / (TOTAL_STEPS - warmup))) / 2
    assert rates[5] == pytest.approx(floor + 4 / 5 * (peak - floor))
    assert rates[20] == pytest.approx(floor + cosine * (peak - floor))


def test_the_config_of_a_run_is_kept(runs, whole):
    kept = json.loads((whole[0] / 'config.json').read_text())
    assert kept == json.loads(json.dumps(runs.make_config().to_dict()))


def test_the_last_score_is_that_of_the_saved_average(runs, whole):
    """Not that of the parameters, nor that of another step."""
    model, params = load(whole[0])
    mesh = make_mesh()
    digits = open_dataset('digits', runs.data_dir)
    scores = score_split(
        model,
        jax.device_put(params, rules.replicated(mesh)),
        digits.split('test'),
        Noise('gaussian', 0.1, 17),
        mesh,
        batch_size=256,
        num_draws=1,
        seed=0,
    )
    recorded = metrics_in(whole[0])[-1]
    assert scores['nats_per_dim'] == pytest.approx(recorded['test/nats_per_dim'], abs=1e-5)
    assert scores['bits_per_dim'] == pytest.approx(recorded['test/bits_per_dim'], abs=1e-5)


def test_scores_are_float32_whatever_is_trained(runs, tmp_path):
    """And intervals may be longer than any count of steps."""
    flags = [f'--config.train.{part}_every={10**9}' for part in ('log', 'sample', 'checkpoint')]
    runs.run(tmp_path, '--config.model.dtype=bfloat16', '--config.train.num_epochs=0.3', *flags)
    model, params = load(tmp_path)
    mesh = make_mesh()
    assert model.dtype == 'bfloat16'
    scores = score_split(
        as_scored(model),
        jax.device_put(params, rules.replicated(mesh)),
        open_dataset('digits', runs.data_dir).split('test'),
        Noise('gaussian', 0.1, 17),
        mesh,
        batch_size=256,
        num_draws=1,
        seed=0,
    )
    recorded = metrics_in(tmp_path)[-1]
    assert scores['nats_per_dim'] == pytest.approx(recorded['test/nats_per_dim'], abs=1e-6)


def test_what_a_run_says_in_a_pipe(whole):
    workdir, result = whole
    assert result.err == ''
    lines = result.out.splitlines()
    assert lines[0] == (
        '8,640 parameters, 1,498 images of digits, 1 cpu device(s), batches in 1 part(s), '
        f'workdir {workdir}'
    )
    assert lines[1].startswith('step  1/24  loss ')
    assert any(line.startswith('step 24/24  loss ') for line in lines)
    last = metrics_in(workdir)[-1]
    assert lines[-5] == (
        f'step 24  test {last["test/nats_per_dim"]:.4f} nats/dim  '
        f'{last["test/bits_per_dim"]:.4f} bits/dim'
    )
    assert lines[-4] == (
        f'Trained to step 24, saved in {workdir}/checkpoints/24. The best checkpoint by the test '
        f'split (299 images) is that of step 24. Samples are in {workdir}/samples.'
    )
    assert lines[-3:] == [
        'Next:',
        f'  python -m tarflow_jax.main --workdir={workdir} --mode=sample',
        f'  python -m tarflow_jax.main --workdir={workdir} --mode=evaluate',
    ]


def test_a_second_trainer_is_refused_and_ctrl_c_ends_the_first(runs, tmp_path):
    workdir = tmp_path / 'run'
    trainer = runs.start(workdir)
    wait_until_held(workdir, trainer.pid)
    result = runs.run(workdir, status=2)
    assert result.out == ''
    assert result.err.startswith(f'error: workdir {workdir} is in use by process {trainer.pid} on ')
    assert result.err.endswith('wait until it ends, stop it, or give another --workdir.\n')
    trainer.signal(signal.SIGINT)
    result = trainer.wait()
    assert result.status == 130
    assert result.err == ''
    (step,) = steps_in(workdir)
    assert result.out.splitlines()[-1] == (
        f'Stopped by SIGINT at step {step}. It is saved in {workdir}/checkpoints/{step}; the same '
        'command resumes from there.'
    )


def test_a_run_that_diverges_from_the_first_step_gives_up_and_can_begin_anew(runs, whole, tmp_path):
    result = runs.run(
        tmp_path,
        '--config.optimizer.peak_learning_rate=1e30',
        '--config.optimizer.clip_norm=0',
        '--config.train.max_restarts=1',
        status=1,
    )
    skips = [line for line in result.out.splitlines() if 'the step was skipped' in line]
    assert [line.rpartition('(')[2] for line in skips] == [f'{n} so far)' for n in range(1, 21)] * 2
    assert result.err == (
        f'error: {skips[-1].partition(":")[0]}: the training has diverged (20 steps in a row had '
        'no finite loss or gradient), after 1 restart (train.max_restarts). '
        'No checkpoint was saved. Lower optimizer.peak_learning_rate, which is 1e+30, to '
        'a third or less, or set optimizer.clip_norm or model.dtype=float32, and run the same '
        'command: it starts again.\n'
    )
    assert steps_in(tmp_path) == []
    runs.run(tmp_path)
    assert_same_run(runs, tmp_path, whole[0])


def test_a_new_run_can_start_from_other_parameters(runs, golden_dir, tmp_path):
    sizes = dict(patch_size=2, width=128, head_dim=64, num_blocks=2, num_classes=0)
    stop_before_the_first_step = ('os.rename', 'config.json', 1, signal.SIGTERM)
    runs.run(
        tmp_path,
        f'--checkpoint={golden_dir}/uncond.pth',
        *(f'--config.model.{key}={value}' for key, value in sizes.items()),
        '--config.evaluate.metrics=bits_per_dim',
        status=143,
        at=stop_before_the_first_step,
    )
    changes = {f'model__{key}': value for key, value in sizes.items()}
    arrays = arrays_in(runs, tmp_path, 0, **changes)
    _, expected = load(golden_dir / 'uncond.pth', image_shape=(8, 8, 1), patch_size=2)
    leaves, _ = jax.tree_util.tree_flatten_with_path(expected)
    assert leaves
    for path, leaf in leaves:
        for item in 'params', 'ema_params':
            name = f"['{item}']{jax.tree_util.keystr(path)}"
            np.testing.assert_array_equal(arrays[name], leaf)


REFUSED = {
    # Sizes of the model.
    ('model__width', 12): ['width must be a multiple of head_dim', 'width=12, head_dim=8'],
    ('model__image_shape', (8, 8)): ['model.image_shape must be three positive', '(8, 8)'],
    ('model__image_shape', (16, 16, 1)): ['(8, 8, 1)', '(16, 16, 1)', 'set config.model'],
    ('model__num_classes', 9): ['digits has 10 classes, the model only 9'],
    ('model__num_classes', -1): ['model.num_classes must be at least 0 (for none); got -1'],
    ('model__num_classes', 2**25): ['model.num_classes must be at most 16777216; got 33554432'],
    ('model__num_blocks', 0): ['num_blocks must be at least 1; got 0'],
    ('model__dtype', 'float16'): ["dtype must be one of float32, bfloat16; got 'float16'"],
    # Data.
    ('data__train_split', 'trian'): [
        "no split 'trian' (data.train_split); it has test (299 examples), train"
    ],
    ('data__test_split', 'validation'): [
        "no split 'validation' (data.test_split); it has test (299 examples), train"
    ],
    ('data__dir', '/dev/null'): ["data_dir '/dev/null' is not a folder"],
    ('noise__type', 'poisson'): ["noise.type must be one of gaussian, uniform; got 'poisson'"],
    ('noise__std', 0.0): ['noise.std must be above 0', '0.0'],
    # Training.
    ('train__batch_size', 1499): ['1499', '1498 images', 'at most 1498'],
    ('train__microbatches', -1): ['train.microbatches must be at least 0; got -1'],
    ('train__microbatches', 3): ['in 3 parts (train.microbatches)', 'multiple of 24'],
    ('train__gather', 'never'): ["train.gather must be one of layer, step; got 'never'"],
    ('optimizer__first_moment_dtype', 'float16'): ['must be one of float32, bfloat16'],
    ('train__batch_size', 60): ['60 cannot be divided evenly among the 8 devices', 'multiple of 8'],
    ('train__batch_size', 0): ['train.batch_size must be at least 1; got 0'],
    ('train__log_every', 0): ['train.log_every must be at least 1; got 0'],
    ('train__num_epochs', 0.0): ['train.num_epochs must be above 0; got 0.0'],
    ('train__num_epochs', math.inf): ['train.num_epochs must be at most 1e+09; got inf'],
    ('train__num_epochs', 1e300): ['train.num_epochs must be at most 1e+09; got 1e+300'],
    ('train__num_epochs', math.nan): ['train.num_epochs must be above 0; got nan'],
    ('train__drop_label', 1.0): ['train.drop_label must lie in [0, 1); got 1.0'],
    ('optimizer__warmup_steps', 24): ['24 steps', 'optimizer.warmup_steps'],
    ('optimizer__clip_norm', -1.0): ['optimizer.clip_norm must be at least 0; got -1.0'],
    ('optimizer__b2', 1.0): ['optimizer.b2 must lie in [0, 1); got 1.0'],
    ('mesh__data', 3): ['data=3, fsdp=1, tensor=1', '8 device(s)', '-1 for the rest'],
    # What would only come up in the middle of the run.
    ('evaluate__batch_size', 0): ['evaluate.batch_size must be at least 1; got 0'],
    ('sample__guide', 'colour'): ["both, scale, shift; got 'colour'"],
    ('sample__guidance', -1.0): ['guidance must be at least 0; got -1.0'],
    ('sample__num_samples', 0): ['sample.num_samples must be at least 1; got 0'],
    ('sample__prior_temperature', -1.0): ['sample.prior_temperature must be at least 0'],
}


@pytest.mark.parametrize(('key', 'value'), REFUSED)
def test_refused_before_anything_is_done(runs, tmp_path, key, value):
    config = runs.make_config(**{key: value})
    with pytest.raises(InputError) as refusal:
        loop.train(build(config), tmp_path, Stop())
    for words in REFUSED[key, value]:
        assert words in str(refusal.value)
    assert {path.name for path in tmp_path.iterdir()} <= {'.lock'}
