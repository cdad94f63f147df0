"""A calibration is faster where it says so, changes no image, and serves nothing else."""

import dataclasses
from types import SimpleNamespace
from unittest.mock import create_autospec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax import sample
from tarflow_jax.flow import TarFlow
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.sampling import block_samples, calibrate, calibration_file, inverse
from tarflow_jax.sampling.guidance import NO_GUIDANCE
from tarflow_jax.sampling.parallel import Calibration

MODEL = TarFlow(
    *((8, 8, 1), 2), num_blocks=2, num_classes=3, width=8, head_dim=4, layers_per_block=1
)
SAMPLING = dict(
    num_samples=4,
    batch_size=4,
    labels='even',
    guidance=0.5,
    guide='both',
    anneal_guidance=False,
    attention_temperature=1.0,
    prior_temperature=1.0,
    tolerance=1e-3,
    method='auto',
)
MEASURED = {key: SAMPLING[key] for key in ('batch_size', 'guidance', 'tolerance')}


@pytest.fixture(scope='module')
def params(random_params):
    return random_params(MODEL)


@pytest.fixture(scope='module')
def measured(params, one_device):
    return calibrate.calibrate(MODEL, params, one_device, **MEASURED)


def solve(params, noise, labels, calibration):
    return jax.jit(
        lambda params, calibration: inverse.inverse(
            *(MODEL.token_flow(), params, MODEL.patchify(noise), labels),
            calibration=calibration,
            tolerance=1e-3,
        )
    )(params, calibration)


def test_what_is_fitted_saves_sweeps_of_other_samples(params, random_batch, one_device):
    calibration, _ = calibrate.calibrate(MODEL, params, one_device, batch_size=4)
    noise, labels = random_batch(MODEL)
    whole = dataclasses.replace(calibration, windows=(15, 15))
    fitted = solve(params, noise, labels, whole)
    jacobi = solve(params, noise, labels, Calibration.default(MODEL.token_flow(), 15))
    assert fitted.sweeps.sum() < jacobi.sweeps.sum()
    np.testing.assert_allclose(fitted.tokens[0], jacobi.tokens[0], atol=1e-2)


@pytest.mark.parametrize('height', [2, 4], ids='{} pixels'.format)
def test_one_token_or_two(height, random_params, random_batch, one_device):
    """No window is tried, and the certificate holds."""
    model = dataclasses.replace(MODEL, image_shape=(height, 2, 1))
    params, (noise, labels) = random_params(model), random_batch(model)
    calibration, reports = calibrate.calibrate(model, params, one_device, batch_size=2)
    assert calibration.windows == (1, 1)
    assert [report.times for report in reports] == [{}, {}]
    for settings in (dict(calibration=calibration), dict(method='parallel')):
        images, residual = sample(model, params, noise, labels, return_residual=True, **settings)
        latents, _ = model.apply({'params': params}, images, labels)
        np.testing.assert_allclose(latents, noise, atol=1e-4)
        np.testing.assert_allclose(residual, 0, atol=1e-5)


def test_the_first_samples(params):
    """As many as devices share evenly, of the same noise and labels."""
    mesh = make_mesh(devices=jax.devices()[:2])
    samples, fewer = (
        block_samples.BlockSamples(
            *(MODEL, params, mesh, 'even', 1.0, NO_GUIDANCE, number),
            before_block=lambda: None,
        )
        for number in (6, 3)
    )
    first = samples.first(3)
    assert first._labels.tolist() == [0, 1, 2, 0]
    for name in ('latents', 'tokens'):
        for x, expected in zip(getattr(first, name), getattr(fewer, name), strict=True):
            np.testing.assert_allclose(x, expected, atol=1e-5)


def test_guided_images_with_a_calibration(params, measured, random_batch):
    calibration, _ = measured
    noise, labels = random_batch(MODEL)
    expected = sample(MODEL, params, noise, labels, guidance=0.5)
    images = sample(MODEL, params, noise, labels, guidance=0.5, calibration=calibration)
    np.testing.assert_allclose(images, expected, atol=1e-2)


def test_reports(measured):
    calibration, reports = measured
    for window, report in zip(calibration.windows, reports, strict=True):
        assert report.window == window
        assert window == 1 or report.times[window] < 0.95
        assert list(report.sweeps) == list(report.evaluations) == list(report.times)
        assert set(report.times) <= {4, 15}
        assert all(sweeps <= 15 for sweeps in report.sweeps.values())
        assert all(1 <= x <= report.sweeps[w] * w / 15 for w, x in report.evaluations.items())
        # Token t is exact after t sweeps, and these are never more than all.
        assert all(t < count <= 16 for t, count in enumerate(report.settled))
        assert report.settled[-1] == 16
        assert len(report.errors) == len(report.settled) < 12
        assert 0 < report.contraction < 1
        assert report.amplification >= 1
    assert any(report.times for report in reports)
    lines = calibration_file.table(reports, 16).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        [str(block), str(window)] for block, window in enumerate(calibration.windows, start=1)
    ]


def test_the_published_metrics(params, one_device):
    """By the formulas of GS-Jacobi, on samples without guidance."""
    samples = block_samples.BlockSamples(
        *(MODEL, params, one_device, 'even', 1.0, NO_GUIDANCE, 4),
        before_block=lambda: None,
    )
    gain = np.eye(16, 4, dtype=np.float32)  # of the latents of the token itself
    for block in range(2):
        z, x = samples.latents[block], samples.tokens[block]
        from_latents = None, gain, np.zeros(4, np.float32)
        report = calibrate.BlockReport(**samples.diagnose(block, from_latents, 1e-3))
        assert report.errors[0] == pytest.approx(np.sqrt(((z - x) ** 2).mean()))
        of_block = jax.tree.map(lambda leaf, block=block: leaf[block], params['blocks'])
        flow_block = MODEL.token_flow().block()
        separate = {'params': flow_block.separate_layers(of_block)}
        rest = samples._labels, 0, flow_block.empty_caches(len(x), 15), 1.0
        (_, log_scale), _ = flow_block.apply(separate, x[:, :-1], *rest, method='step')
        first = np.linalg.norm((x[:, 1:] * np.exp(-log_scale)).mean(axis=0), 2)
        scale, shift = (np.linalg.norm(of_block['proj_out']['kernel'][:, i], 2) for i in (0, 1))
        assert report.crm == pytest.approx(first * scale + shift, rel=1e-4)
        swept = samples._sweep(block, z)
        assert report.igm == pytest.approx(np.linalg.norm((swept - x).mean(axis=0), 2), rel=1e-5)


@pytest.mark.parametrize(('num_samples', 'num_solved'), [(2, 3), (4, 2)])
def test_the_error_of_an_image_by_residuals_of_a_block(num_samples, num_solved, one_device):
    """A block that scales its latents by 3 makes residuals of the block above 3 times as large.

    Of two samples, each block has both, one after the other; of four, each has two at once.
    """
    params = MODEL.init_params(jax.random.key(0))
    bias = params['blocks']['proj_out']['bias'].at[0, 0].set(np.log(3))  # log_scale
    params['blocks']['proj_out']['bias'] = bias
    solved = []
    samples = block_samples.BlockSamples(
        *(MODEL, params, one_device, 'even', 1.0, NO_GUIDANCE, num_samples),
        before_block=lambda: solved.append(1),
    )
    solved.clear()
    assert samples.amplifications([0, 1], 1e-2) == pytest.approx({0: 1, 1: 3}, rel=1e-3)
    assert len(solved) == num_solved


def test_what_is_stored_is_found_again(params, measured, one_device, tmp_path, caplog):
    calibration, reports = measured

    def find_calibration(params=params, **changes):
        sampling = {**SAMPLING, **changes}
        return calibration_file.find_calibration([tmp_path], MODEL, params, one_device, sampling)

    assert find_calibration() is None
    assert not caplog.records
    identity = calibration_file.calibration_identity(MODEL, params, one_device, SAMPLING)
    path = tmp_path / 'calibration.npz'
    calibration_file.write(path, calibration, identity, reports)
    found = find_calibration()
    assert found is not None
    assert found.windows == calibration.windows
    jax.tree.map(np.testing.assert_array_equal, found, calibration)
    assert find_calibration(method='sequential') is None
    assert not caplog.records

    others = jax.tree.map(lambda x: 2 * x, params)
    for arguments, words in (
        (dict(params=others), 'it was made for other parameters'),
        (dict(guidance=0.0), 'guidance was 0.5, is 0.0'),
        (dict(batch_size=2), 'batch_size was 4, is 2'),
    ):
        caplog.clear()
        assert find_calibration(**arguments) is None
        (record,) = caplog.records
        assert words in record.getMessage()
        assert 'Run --mode=calibrate with the same settings' in record.getMessage()
        assert record.getMessage().endswith(' --config.mesh.data=1.')  # as the device here


@pytest.mark.parametrize('damage', ['cut', 'other', 'shapes'])
def test_a_damaged_file_is_not_used(damage, params, measured, one_device, tmp_path, caplog):
    calibration, reports = measured
    identity = calibration_file.calibration_identity(MODEL, params, one_device, SAMPLING)
    path = tmp_path / 'calibration.npz'
    if damage == 'shapes':
        calibration = dataclasses.replace(calibration, gain=jnp.zeros((2, 3, 4)))
    calibration_file.write(path, calibration, identity, reports)
    if damage == 'cut':
        path.write_bytes(path.read_bytes()[:-100])
    if damage == 'other':
        path.write_text('not a calibration')
    assert (
        calibration_file.find_calibration([tmp_path], MODEL, params, one_device, SAMPLING) is None
    )
    (record,) = caplog.records
    assert f'{path} is damaged' in record.getMessage()


@pytest.mark.parametrize(
    ('num_tokens', 'times', 'tried', 'chosen'),
    [
        (1024, {256: 0.9, 1023: 0.5}, [256, 1023], 1023),
        (1024, {256: 0.7, 1023: 0.8, 64: 0.6}, [256, 1023, 64], 64),
        (1024, {256: 1.2, 64: 0.5}, [256, 64], 64),
        (1024, {256: 0.97, 1023: 0.96, 64: 0.98}, [256, 1023], 1),  # too little is gained
        (16, {4: 0.8, 15: 0.9}, [4, 15], 4),
        (4, {3: 0.5}, [3], 3),
        (2, {}, [], 1),
        (1, {}, [], 1),
    ],
)
def test_the_fastest_window_is_chosen(num_tokens, times, tried, chosen, monkeypatch):
    report, windows = calibrate.BlockReport(), []

    def measured(samples, fits, window, tolerance, reports):
        windows.append(window)
        report.times[window] = times[window]

    monkeypatch.setattr(calibrate, '_time_window', measured)
    samples = SimpleNamespace(latents=[np.zeros((1, num_tokens, 1))])
    calibrate._choose_windows(samples, None, 1e-3, [report], lambda line: None)
    assert (windows, report.window) == (tried, chosen)


@pytest.mark.parametrize(
    ('of_evaluation', 'expected'), [(0.15, [0, 1, 2]), (0.2, [0, 2]), (0.4, [2])], ids=str
)
def test_harder_blocks_follow_until_a_window_is_not_the_fastest(
    of_evaluation, expected, monkeypatch
):
    """Three of 3, 4 and 2 evaluations; of 4, 5 and 2 with the larger window."""
    evaluations = {16: [3.0, 4.0, 2.0], 64: [4.0, 5.0, 2.0]}
    counted = []

    class Samples:
        latents = [np.zeros((1, 101, 1))] * 3

        def solver(self, block, z_BTP, linear, window, tolerance):
            def run():
                counted.append(block)
                return z_BTP, 7, 100 * evaluations[window][block]

            return run

    # To that of the smaller window in the easiest block, where it takes half the sequential time.
    ratios = SimpleNamespace(median=lambda ratios: 2 * of_evaluation / 0.5)
    monkeypatch.setattr(calibrate, 'statistics', ratios)
    reports = [
        calibrate.BlockReport(
            times={16: 0.25 * count}, evaluations={16: count}, errors=[1.0, 0.1 * count]
        )
        for count in evaluations[16]
    ]
    calibrate._time_window(Samples(), [None] * 3, 64, 1e-3, reports)
    tried = [block for block, report in enumerate(reports) if 64 in report.times]
    assert tried == sorted(set(counted)) == expected
    for block in tried:
        assert reports[block].times[64] == of_evaluation * evaluations[64][block]


@pytest.mark.parametrize(
    ('strict', 'chosen'),
    [({64: 6.0, 16: 3.1}, 16), ({64: 6.0, 16: 3.9}, 1), ({64: 4.1}, 64)],
    ids=str,
)
def test_the_choice_holds_at_the_tolerance_of_the_block(strict, chosen):
    """Of windows with the times of 0.7 and 0.75; more evaluations make the first too slow."""

    def solver(block, z_BTP, linear, window, tolerance):
        assert tolerance == 5e-4
        return lambda: (z_BTP, 7, 100 * strict.pop(window))

    samples = SimpleNamespace(latents=[np.zeros((1, 101, 1))], solver=solver)
    report = calibrate.BlockReport(
        window=64, times={64: 0.7, 16: 0.75}, evaluations={64: 4.0, 16: 3.0}, amplification=2.0
    )
    calibrate._choose_again(samples, [None], 1e-3, 0, report)
    assert (report.window, strict) == (chosen, {})


@pytest.mark.parametrize(
    ('sweep', 'num_batches', 'expected'),
    [(0.24, 31, True), (0.26, 31, False), (0.24, 29, False)],
    ids=['pays', 'slow sweeps', 'soon drawn'],
)
def test_a_calibration_may_pay(sweep, num_batches, expected, params, one_device, monkeypatch):
    """Two blocks of a second each; four sweeps should be faster."""

    def timed(run):
        return 1.0 if run.func is block_samples._solve else sweep

    monkeypatch.setattr(calibrate, '_timed', timed)
    settings = dict(batch_size=2, num_batches=num_batches, guidance=0.5, prior_temperature=0.9)
    assert calibrate.may_pay(MODEL, params, one_device, **settings) is expected


def test_a_calibration_of_something_else_is_told_where_none_is_made(
    params, one_device, measured, tmp_path, monkeypatch, caplog
):
    never = create_autospec(calibrate.may_pay, return_value=False)
    monkeypatch.setattr(calibration_file, 'may_pay', never)
    identity = calibration_file.calibration_identity(MODEL, params, one_device, SAMPLING)
    calibration_file.write(tmp_path / 'calibration.npz', measured[0], identity, measured[1])
    sampling = {**SAMPLING, 'num_samples': 128, 'tolerance': 0.01}
    of_sampling = MODEL, params, one_device, sampling, lambda: None
    assert calibration_file.find_or_calibrate(tmp_path, [tmp_path], *of_sampling) is None
    (record,) = caplog.records
    assert 'tolerance was 0.001, is 0.01' in record.getMessage()


@pytest.mark.parametrize('change', [{}, dict(num_samples=31), dict(method='parallel')], ids=str)
@pytest.mark.parametrize('may_pay', [True, False])
def test_many_samples_are_calibrated_once(
    change, may_pay, params, one_device, measured, tmp_path, monkeypatch, capsys
):
    calls = []
    told = create_autospec(calibrate.may_pay, return_value=may_pay)
    monkeypatch.setattr(calibration_file, 'may_pay', told)

    def calibrated(*args, **settings):
        calls.append(settings['batch_size'])
        return measured

    monkeypatch.setattr(calibration_file, 'calibrate', calibrated)
    sampling = {**SAMPLING, 'num_samples': 32, 'batch_size': 1, **change}
    of_sampling = MODEL, params, one_device, sampling, lambda: None
    found = [
        calibration_file.find_or_calibrate(tmp_path, [tmp_path], *of_sampling) for _ in range(2)
    ]
    out = capsys.readouterr().out
    if change or not may_pay:
        assert (found, calls, out) == ([None, None], [], '')
    else:
        assert calls == [1]
        assert out.startswith('No calibration matches these samples on this device; creating one.')
        for calibration in found:
            assert calibration.windows == measured[0].windows


def test_the_command_line(runs, whole, tmp_path):
    flags = [f'--checkpoint={whole[0]}', '--config.sample.tolerance=0.01']
    before = runs.run(tmp_path, '--mode=sample', *flags).out
    expected = np.load(tmp_path / 'samples' / 'samples.npz')['arr_0']
    result = runs.run(tmp_path, '--mode=calibrate', *flags)
    lines = result.out.splitlines()
    assert lines[0] == 'Samples are drawn; fitting each block.'
    assert lines[1].startswith('A window of 3 tokens: ')
    assert lines[-3].startswith('Calibrated in ')
    of_model = f'--workdir={tmp_path} --checkpoint={whole[0]}'
    assert lines[-1].endswith(f'{of_model} --mode=sample --config.sample.tolerance=0.01')
    assert (tmp_path / 'calibration.npz').exists()
    assert result.err == ''
    after = runs.run(tmp_path, '--mode=sample', *flags)
    assert after.err == ''
    images = np.load(tmp_path / 'samples' / 'samples.npz')['arr_0']
    assert np.abs(images.astype(int) - expected).max() <= 0.01 * 10 * 127.5
    other = runs.run(tmp_path, '--mode=sample', *flags, '--config.sample.batch_size=8')
    warning = f'batch_size was 16, is 8 ({tmp_path}/calibration.npz). Run --mode=calibrate '
    assert warning in other.err
    assert before.startswith('16 samples in ')
