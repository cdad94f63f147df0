"""Statistics in the files that users have; that they are right, test_distances.py shows."""

import json
import os

import numpy as np
import pytest

from tarflow_jax.errors import InputError
from tarflow_jax.evaluation import references
from tarflow_jax.evaluation.inception import FEATURES
from tarflow_jax.evaluation.moments import Gaussian, Moments
from tarflow_jax.evaluation.references import Reference
from tarflow_jax.formats import torchfile


def gaussian(size, seed=0):
    draws = np.random.default_rng(seed).normal(size=(4, size))
    return Gaussian(draws[0], draws.T @ draws)


def assert_same(a: Gaussian, b: Gaussian):
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.cov, b.cov)


@pytest.fixture(scope='module')
def ours():
    return Reference(
        {'pool': gaussian(FEATURES['pool']), 'spatial': gaussian(FEATURES['spatial'], 1)},
        rows={'pool': np.ones((3, FEATURES['pool']), np.float32)},
        metadata={'dataset': 'afhq', 'image_shape': [64, 64, 3], 'preprocessing': 'clean-fid'},
    )


@pytest.fixture(scope='module')
def our_file(ours, tmp_path_factory):
    path = tmp_path_factory.mktemp('references') / 'made' / 'ours.npz'
    references.write(path, ours)
    return path


def test_a_file_of_ours_comes_back_and_others_read_it(ours, our_file):
    found = references.read(our_file)
    for name in 'pool', 'spatial':
        assert_same(found.gaussians[name], ours.gaussians[name])
    np.testing.assert_array_equal(found.rows['pool'], ours.rows['pool'])
    assert found.metadata == ours.metadata
    assert found.images is None
    assert found.path == str(our_file)
    assert len(found.sha256) == 64
    with np.load(our_file) as arrays:  # as pytorch-fid, EDM and ADM do
        np.testing.assert_array_equal(arrays['mu'], ours.gaussians['pool'].mean)
        np.testing.assert_array_equal(arrays['sigma_s'], ours.gaussians['spatial'].cov)
        assert json.loads(str(arrays['metadata']))['dataset'] == 'afhq'


def test_statistics_of_pytorch_fid(ours, tmp_path):
    mean, cov = ours.gaussians['pool']
    np.savez(tmp_path / 'theirs.npz', mu=mean, sigma=cov)
    found = references.read(tmp_path / 'theirs.npz')
    assert_same(found.gaussians['pool'], ours.gaussians['pool'])
    assert found.metadata == found.rows == {}


def test_a_reference_batch_of_adm(ours, tmp_path):
    arrays = {}
    for name, keys in ('pool', ('mu', 'sigma')), ('spatial', ('mu_s', 'sigma_s')):
        arrays |= dict(zip(keys, ours.gaussians[name], strict=True))
    images = np.zeros((5, 64, 64, 3), np.uint8)
    np.savez(tmp_path / 'VIRTUAL_imagenet64_labeled.npz', arr_0=images, **arrays)
    found = references.read(tmp_path / 'VIRTUAL_imagenet64_labeled.npz')
    assert set(found.gaussians) == {'pool', 'spatial'}
    assert found.images.shape == images.shape
    references.check(found, {'preprocessing': 'torch-fidelity'}, (64, 64, 3))
    with pytest.raises(
        InputError,
        match=r'image_shape is \[64, 64, 3\] in the reference, \[32, 32, 3\] in this evaluation',
    ):
        references.check(found, {}, (32, 32, 3))


@pytest.mark.parametrize('prefix', ['', 'fid.'])
def test_a_state_of_torchmetrics(tmp_path, prefix):
    """Sums in float64, the count as a tensor without dimensions, the network's weights beside."""
    features = np.random.default_rng(0).normal(size=(9, FEATURES['pool'])).astype(np.float32)
    moments = Moments(FEATURES['pool'])
    moments.add(features)
    exact = features.astype(np.float64)
    torchfile.write_state_dict(
        tmp_path / 'afhq_256_fid_stats.pth',
        {
            f'{prefix}real_features_sum': exact.sum(axis=0),
            f'{prefix}real_features_cov_sum': exact.T @ exact,
            f'{prefix}real_features_num_samples': np.array(9),
            f'{prefix}fake_features_num_samples': np.array(0),
            f'{prefix}inception.fc.weight': np.zeros((3, 2), np.float32),
        },
    )
    found = references.read(tmp_path / 'afhq_256_fid_stats.pth').gaussians['pool']
    np.testing.assert_allclose(found.mean, moments.gaussian().mean, rtol=1e-12)
    np.testing.assert_allclose(found.cov, moments.gaussian().cov, rtol=1e-9, atol=1e-12)
    whole = references.read(tmp_path / 'afhq_256_fid_stats.pth')
    references.check(whole, {'preprocessing': 'torch-fidelity'}, (256, 256, 3))
    with pytest.raises(
        InputError, match='preprocessing is torch-fidelity in the reference, clean-fid in'
    ):
        references.check(whole, {'preprocessing': 'clean-fid'}, (256, 256, 3))


def test_what_was_made_otherwise_is_refused(our_file):
    found = references.read(our_file)
    references.check(found, {'preprocessing': 'clean-fid'}, (64, 64, 3))
    with pytest.raises(
        InputError, match='preprocessing is clean-fid in the reference, torch-fidelity in'
    ):
        references.check(found, {'preprocessing': 'torch-fidelity'}, (64, 64, 3))
    with pytest.raises(
        InputError, match=r'image_shape is \[64, 64, 3\] in the reference, \[256, 256, 3\]'
    ):
        references.check(found, {'preprocessing': 'clean-fid'}, (256, 256, 3))


def test_features_that_hardly_vary(tmp_path):
    """Their covariance is what rounding leaves of two large numbers."""
    means = np.full(2, 30.0)
    np.savez(tmp_path / 'x.npz', mu_haar=means, sigma_haar=-1e-13 * np.eye(2))
    np.testing.assert_array_equal(references.read(tmp_path / 'x.npz').gaussians['haar'].mean, means)


HAAR = dict(mu_haar=np.zeros(2), sigma_haar=np.eye(2))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'sigma_haar': -np.eye(2)}, 'variances below 0'),
        ({'sigma_haar': np.array([[1.0, 2.0], [2.0, 1.0]])}, 'variances below 0'),
        ({'sigma_haar': np.array([[1.0, 0.5], [0.0, 1.0]])}, 'not symmetric'),
        ({'sigma_haar': np.array([[1.0, np.nan], [np.nan, 1.0]])}, 'not finite'),
        ({'mu_haar': np.array([0.0, np.inf])}, 'not finite'),
        ({'features_haar': np.full((3, 2), np.nan)}, 'not finite'),
        ({'features_haar': np.zeros((3, 5))}, r'features_haar has the shape \(3, 5\)'),
        ({'metadata': 'null'}, 'its metadata is NoneType, not settings by name'),
        ({'metadata': '[1]'}, 'its metadata is list'),
        ({'metadata': '[' * 200_000}, 'cannot be read'),
        ({'metadata': 3}, 'its metadata is int'),
        ({'arr_0': np.zeros((3, 5))}, r'arr_0 is float64 \[3, 5\]'),
        ({'mu_haar': np.array(['a', 'b'])}, 'holds statistics of shape'),
        ({'mu_haar': np.array([{}, {}])}, 'mu_haar is of type object'),
    ],
    ids=str,
)
def test_statistics_of_nothing_are_refused(tmp_path, change, words):
    np.savez(tmp_path / 'x.npz', **(HAAR | change))
    with pytest.raises(InputError, match=words):
        references.read(tmp_path / 'x.npz')


@pytest.mark.parametrize(
    'cov',
    [np.zeros((2, 2)), np.full((2, 2), 0.1, np.float32), np.array([[1.0, 1 + 1e-7], [1.0, 1.0]])],
    ids=['none', 'singular', 'rounded'],
)
def test_a_covariance_of_few_samples_is_one(tmp_path, cov):
    np.savez(tmp_path / 'x.npz', **(HAAR | {'sigma_haar': cov}))
    assert_same(references.read(tmp_path / 'x.npz').gaussians['haar'], Gaussian(np.zeros(2), cov))


def test_features_of_another_kind_are_passed_over(tmp_path):
    np.savez(tmp_path / 'x.npz', **HAAR, features_pool=np.zeros((3, 5)), features_x=np.zeros(3))
    assert references.read(tmp_path / 'x.npz').rows == {}


@pytest.mark.parametrize('name', ['x.npz', 'x.pth'])
def test_a_fifo_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match='it is not a file, but a FIFO'):
        references.read(tmp_path / name)


def test_files_that_are_no_statistics(tmp_path, golden_dir):
    with pytest.raises(InputError, match=r'no\.npz: there is no such file.*--mode=prepare_fid'):
        references.read(tmp_path / 'no.npz')
    (tmp_path / 'text.npz').write_text('text')
    with open(tmp_path / 'array.npz', 'wb') as file:
        np.save(file, np.zeros(3))
    np.savez(tmp_path / 'metadata.npz', mu_haar=np.zeros(2), sigma_haar=np.eye(2), metadata='{')
    rows = np.zeros((5, 7))
    np.savez(tmp_path / 'rows.npz', mu_haar=np.zeros(2), sigma_haar=np.eye(2), features_haar=rows)
    np.savez(tmp_path / 'scalar.npz', mu_haar=np.array('x'), sigma_haar=np.eye(2))
    for name in 'text', 'array', 'metadata', 'rows', 'scalar':
        with pytest.raises(InputError, match=rf'{name}\.npz (cannot be read as|holds)'):
            references.read(tmp_path / f'{name}.npz')
    np.savez(tmp_path / 'samples.npz', arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match='holds no statistics: it has no mu and sigma'):
        references.read(tmp_path / 'samples.npz')
    np.savez(tmp_path / 'vgg.npz', mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(InputError, match=r'shape \(64,\) and \(64, 64\); those of the 2015 Incept'):
        references.read(tmp_path / 'vgg.npz')
    np.savez(tmp_path / 'nan.npz', mu=np.full(2048, np.nan), sigma=np.eye(2048))
    with pytest.raises(InputError, match='not finite'):
        references.read(tmp_path / 'nan.npz')
    with pytest.raises(InputError, match='it has no real_features_sum'):
        references.read(golden_dir / 'cond.pth')
