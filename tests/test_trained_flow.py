"""The object of a notebook: its methods are the functions, and do what the program does."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import tarflow_jax
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError
from tarflow_jax.imagefiles import to_uint8
from tarflow_jax.trained_flow import TrainedFlow

LEVELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
PIXELS = LEVELS.astype(np.float32) / 127.5 - 1


@pytest.fixture(scope='module')
def workdir(whole, tmp_path_factory):
    """A copy of the workdir of a run, to sample and to evaluate in."""
    return shutil.copytree(whole[0], tmp_path_factory.mktemp('flow') / 'run')


@pytest.fixture(scope='module')
def flow(workdir):
    return tarflow_jax.load(workdir)


def test_it_unpacks_and_knows_the_rest(flow, workdir):
    model, params = flow
    assert (model, params) == (flow.model, flow.params) == (flow[0], flow[1])
    assert flow.config.train.batch_size == 64
    assert flow.noise == ('gaussian', 0.1)
    assert (flow.noise.type, flow.noise.std, flow.step) == ('gaussian', 0.1, 24)
    assert flow.path == workdir
    assert repr(flow) == (
        'TrainedFlow(8x8x1 images, 10 classes, 8,640 parameters, gaussian noise of 0.1, step 24)'
    )


def test_a_published_file_tells_what_its_name_does(golden_dir, tmp_path):
    path = shutil.copy(golden_dir / 'uncond.pth', tmp_path / 'mnist_model_2_128_2_1_0.10.pth')
    flow = tarflow_jax.load(path)
    assert flow.noise == ('gaussian', 0.1)
    assert flow.config.data.name == 'mnist'
    assert flow.config.model.width == 128
    unnamed = tarflow_jax.load(golden_dir / 'uncond.pth', image_shape=(8, 8, 1), patch_size=2)
    assert unnamed.noise is None
    with pytest.raises(InputError, match='only Gaussian noise has a score step'):
        unnamed.denoise(LEVELS)
    with pytest.raises(InputError, match='the noise that the model was trained with is unknown'):
        unnamed.bits_per_dim(LEVELS)


def test_samples_of_a_seed_are_those_of_the_program(flow, runs, workdir):
    flags = '--config.sample.seed=5', '--config.sample.batch_size=6', '--config.sample.denoise'
    runs.run(workdir, '--mode=sample', *flags)
    expected = np.load(workdir / 'samples' / 'samples.npz')
    images = to_uint8(flow.sample(5, 16, denoise=True))
    assert np.abs(images.astype(int) - expected['arr_0']).max() <= 1
    assert len(flow.sample(5)) == 16


def test_samples_do_not_depend_on_how_many_there_are(flow, monkeypatch):
    whole = flow.sample(jax.random.key(3), 5, labels=[1, 2, 3, 4, 5], guidance=0.5)
    monkeypatch.setitem(flow.config.sample, 'batch_size', 2)
    parts = flow.sample(3, labels=[1, 2, 3, 4, 5], guidance=0.5, progress=True)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    cold = flow.sample(3, 5, labels=2, temperature=0)
    np.testing.assert_allclose(cold, np.broadcast_to(cold[:1], cold.shape), atol=1e-5)


def test_samples_with_their_residuals(flow, monkeypatch):
    monkeypatch.setattr(tarflow_jax.trained_flow, 'BATCH', 4)
    settings = dict(method='parallel', tolerance=0.1)
    images = flow.sample(1, 6, **settings)
    with_residual = flow.sample(1, 6, **settings, return_residual=True)
    both = flow.sample(1, 6, **settings, return_residual=True, return_resolved=True)
    for found in with_residual[0], both[0]:
        np.testing.assert_array_equal(found, images)
    assert with_residual[1].shape == both[2].shape == (6,)
    assert np.all(with_residual[1] <= 0.1)
    np.testing.assert_array_equal(both[1], with_residual[1])


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda flow: flow.sample(0, 2, temperature=-1), '^temperature must be at least 0; got -1'),
        (lambda flow: flow.log_prob(LEVELS[:0]), r'shape \[batch, 8, 8, 1\]; got \[0, 8, 8, 1\]'),
        (lambda flow: flow.bits_per_dim(LEVELS, num_levels=1), 'num_levels must be at least 2'),
        (lambda flow: flow.bits_per_dim(LEVELS[:0]), r'got \[0, 8, 8, 1\]'),
        (lambda flow: flow.log_prob(Image.new('F', (8, 8))), 'of mode F has floating-point pixels'),
        (lambda flow: flow.inverse(3), r'the model takes latents of shape .* got \[\]'),
        (
            lambda flow: tarflow_jax.sample(*flow, PIXELS, calibration=3),
            'calibration must be a Calibration; got 3',
        ),
        (
            lambda flow: tarflow_jax.inpaint(
                *flow, PIXELS, np.ones((8, 8)) > 0, key=-1, noise_std=0
            ),
            'key, or seed, must be at least 0; got -1',
        ),
        (lambda flow: flow.sample(0, 10**9), '^num=1000000000 does not fit on this machine: the'),
        (
            lambda flow: TrainedFlow(flow.model, {}).save_pretrained('/nowhere'),
            'params are not those of the model: .* is missing',
        ),
        (lambda flow: flow.sample(0, labels=[1, [2, 3]]), 'labels must be an array of numbers'),
        (lambda flow: flow.sample(0, 2, denoise='yes'), "denoise must be True or False; got 'yes'"),
        (lambda flow: flow.interpolate(LEVELS[:1], LEVELS), r'as many images at both ends'),
    ],
)
def test_bad_input_is_told(flow, call, message):
    with pytest.raises(InputError, match=message):
        call(flow)


def test_a_model_of_ones_own_is_written_in_float32(flow, tmp_path):
    params = jax.tree.map(lambda leaf: leaf.astype('bfloat16'), flow.params)
    own = TrainedFlow(flow.model, params)
    assert own.noise is None
    again = tarflow_jax.load(own.save_pretrained(tmp_path / 'own'))
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    with pytest.raises(InputError, match=r'model.safetensors is one file of a model: give the fol'):
        tarflow_jax.load(tmp_path / 'own' / 'model.safetensors')


def test_pixels_that_are_no_numbers_are_told(flow, caplog):
    flow.log_prob(np.full((1, 8, 8, 1), np.nan))
    assert caplog.messages == ['images reach nan; their pixels should lie in [-1, 1].']


def test_methods_are_the_functions(flow):
    """Of images of any kind, with labels of any kind."""
    model, params = flow
    labels = np.array([1, 1, 1], np.int32)
    pictures = [Image.fromarray(image[..., 0]) for image in LEVELS]
    latents, log_det = flow.forward(LEVELS, 1)
    expected = tarflow_jax.forward(model, params, PIXELS, labels)
    jax.tree.map(np.testing.assert_array_equal, (latents, log_det), expected)
    pairs = [
        (flow.inverse(latents, 1), tarflow_jax.inverse(model, params, latents, labels)),
        (flow.inverse(latents[:1], 1), flow.inverse(np.asarray(latents)[0], 1)),
        (flow.journey(latents, 1), tarflow_jax.journey(model, params, latents, labels)),
        (flow.reconstruct(pictures, 1), tarflow_jax.reconstruct(model, params, PIXELS, labels)),
        (
            flow.interpolate(pictures, PIXELS[::-1], 3, labels=1),
            tarflow_jax.interpolate(model, params, PIXELS, PIXELS[::-1], 3, labels),
        ),
        (
            flow.denoise(pictures, [1, 1, 1]),
            tarflow_jax.denoise(model, params, PIXELS, labels, noise_std=0.1),
        ),
        (flow.log_prob(LEVELS, 1), tarflow_jax.log_prob(model, params, PIXELS, labels)),
        (flow.classify(pictures), tarflow_jax.class_log_probs(model, params, PIXELS)),
    ]
    for result, expected in pairs:
        np.testing.assert_array_equal(result, expected)


def test_inpainting_keeps_what_is_known(flow):
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    completed, labels, acceptance = flow.inpaint(LEVELS, mask, num_candidates=9, num_steps=2)
    np.testing.assert_allclose(completed[:, :4], PIXELS[:, :4], atol=1e-6)
    assert labels.shape == acceptance.shape == (3,)
    assert np.all((labels >= 0) & (labels < 10))


def test_bits_per_dim_are_those_of_an_evaluation(flow, runs, workdir):
    runs.run(
        *(workdir, '--mode=evaluate', "--config.evaluate.metrics=('bits_per_dim',)"),
        *('--config.evaluate.num_draws=2', '--config.evaluate.seed=3'),
    )
    scores = json.loads((workdir / 'evaluation.json').read_text())
    split = open_dataset('digits', runs.data_dir).split('test')
    examples = split.__getitems__(range(len(split)))
    bits = flow.bits_per_dim(
        examples['image'], examples['label'], num_levels=17, num_draws=2, seed=3
    )
    assert bits.shape == (299,)
    assert bits.mean() == pytest.approx(scores['test/bits_per_dim'], rel=1e-6)


def test_no_score_step_removes_uniform_noise(flow):
    config = ConfigDict({'model': {}, 'noise': {'type': 'uniform', 'std': 0.1}})
    uniform = TrainedFlow(flow.model, flow.params, config)
    assert uniform.noise == ('uniform', 0.0)
    with pytest.raises(InputError, match='trained with is uniform, and only Gaussian noise'):
        uniform.denoise(LEVELS)
    assert uniform.denoise(LEVELS, noise_std=0.1).shape == LEVELS.shape


def test_classes_by_their_names(flow, tmp_path):
    folder = tmp_path / 'animals' / '1.0.0'
    folder.mkdir(parents=True)
    (folder / 'label.labels.txt').write_text('cat\ndog\n')
    config = ConfigDict({'model': {}, 'data': {'name': 'animals', 'dir': str(tmp_path)}})
    named = TrainedFlow(flow.model, flow.params, config)
    assert named.class_names == ('cat', 'dog')
    np.testing.assert_array_equal(named.sample(0, 2, labels='dog'), flow.sample(0, 2, labels=1))
    assert flow.class_names == ()
    with pytest.raises(InputError, match='give numbers, not'):
        flow.sample(0, 2, labels='dog')


def test_a_calibration_of_other_settings_is_not_used(flow, workdir, caplog):
    (workdir / 'calibration.npz').write_bytes(b'')
    images = flow.sample(0, 2)
    assert 'The calibration is not used' in caplog.text
    (workdir / 'calibration.npz').unlink()
    caplog.clear()
    np.testing.assert_array_equal(flow.sample(0, 2), images)
    assert caplog.text == ''
