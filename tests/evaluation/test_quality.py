"""Sets of images measured and compared, on features that need no weights."""

import numpy as np
import pytest

from tarflow_jax.data.dataset import ArraySplit
from tarflow_jax.evaluation import haar, metrics, quality
from tarflow_jax.evaluation.distances import frechet_distance, precision_recall
from tarflow_jax.evaluation.features import Features, to_8_bits, to_levels
from tarflow_jax.evaluation.moments import Gaussian
from tarflow_jax.parallel.mesh import make_mesh

NUM_IMAGES = 101
HAAR = ['haar_frechet', 'haar_precision', 'haar_recall']


def make_split(seed, num_images=NUM_IMAGES):
    draws = np.random.default_rng(seed)
    images = draws.integers(0, 17, (num_images, 8, 8, 1)).astype(np.uint8)
    return ArraySplit(images, np.full(num_images, -1, np.int32))


def measure_split(split, mesh, *, batch_size=32, flip=False):
    return quality.measure_split(
        split, 17, Features(['haar'], mesh), mesh, batch_size=batch_size, flip=flip
    )


def features_by_hand(split):
    levels = split.__getitems__(range(len(split)))['image']
    return np.asarray(haar.features(np.rint(levels * (255 / 16)).astype(np.uint8)))


@pytest.fixture(scope='module')
def split():
    return make_split(0)


@pytest.mark.parametrize(('batch_size', 'data'), [(32, 1), (101, 1), (1, 1), (24, 8), (200, 4)])
def test_every_image_counts_once_however_they_are_batched(split, batch_size, data):
    mesh = make_mesh(data=data, tensor=8 // data)
    reference = measure_split(split, mesh, batch_size=batch_size)
    by_hand = features_by_hand(split).astype(np.float64)
    np.testing.assert_allclose(reference.gaussians['haar'].mean, by_hand.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(reference.gaussians['haar'].cov, np.cov(by_hand.T), atol=1e-8)
    np.testing.assert_allclose(reference.rows['haar'], by_hand, rtol=1e-5, atol=1e-6)


def test_mirrored_images_count_too(split, one_device):
    images = split.__getitems__(range(NUM_IMAGES))['image']
    both = ArraySplit(np.concatenate([images, images[:, :, ::-1]]), np.full(2 * NUM_IMAGES, -1))
    expected = measure_split(both, one_device).gaussians['haar']
    flipped = measure_split(split, one_device, flip=True)
    np.testing.assert_allclose(flipped.gaussians['haar'].mean, expected.mean, rtol=1e-9)
    np.testing.assert_allclose(flipped.gaussians['haar'].cov, expected.cov, atol=1e-9)
    assert len(flipped.rows['haar']) == NUM_IMAGES


def test_of_many_images_some_evenly_spread_are_kept(split, one_device, monkeypatch):
    monkeypatch.setattr(quality, 'KEPT_ROWS', 10)
    kept = measure_split(split, one_device).rows['haar']
    expected = features_by_hand(split)[np.arange(10) * NUM_IMAGES // 10]
    np.testing.assert_allclose(kept, expected, rtol=1e-5, atol=1e-6)


def test_scores_are_those_of_the_features(split, one_device):
    reference = measure_split(split, one_device)
    others = make_split(1, 80)
    found = measure_split(others, one_device)
    samples = quality.Measurements(found.gaussians, found.rows)
    scores = quality.score(samples, {'haar': reference}, HAAR)
    ours, theirs = (features_by_hand(s).astype(np.float64) for s in (split, others))
    gaussians = [Gaussian(x.mean(axis=0), np.cov(x.T)) for x in (ours, theirs)]
    assert scores['haar_frechet'] == pytest.approx(frechet_distance(*gaussians), rel=1e-5)
    both = precision_recall(reference.rows['haar'], found.rows['haar'])
    assert (scores['haar_precision'], scores['haar_recall']) == both
    assert both[0] != both[1]  # or they could be mistaken for one another


def test_a_set_is_at_no_distance_from_itself(split, one_device):
    reference = measure_split(split, one_device)
    samples = quality.Measurements(reference.gaussians, reference.rows)
    scores = quality.score(samples, {'haar': reference}, HAAR)
    assert scores == {
        'haar_frechet': pytest.approx(0, abs=1e-8),
        'haar_precision': 1.0,
        'haar_recall': 1.0,
    }


def test_few_samples_are_warned_of_with_their_bias(split, one_device):
    reference = measure_split(split, one_device)
    few = measure_split(make_split(0, 20), one_device)
    samples = quality.Measurements(few.gaussians, few.rows)
    (text,) = quality.warnings_of_few('haar_frechet', reference, 20)
    assert quality.warnings_of_few('haar_recall', reference, 20) == []
    assert quality.warnings_of_few('haar_frechet', reference, 65) == []
    found = quality.score(samples, {'haar': reference}, ['haar_frechet'])['haar_frechet']
    assert text.startswith('haar_frechet of 20 samples with 64 features: their covariance is')
    bias = float(text.partition('would score about ')[2].partition('. ')[0])
    assert bias == pytest.approx(found, rel=0.3)  # the first 20 of the same images: a perfect model


def test_numbers_of_samples_for_which_there_is_no_metric():
    assert metrics.sample_count_error(['haar_frechet'], 2) is None
    assert 'at least 2 for haar_frechet; got 1' in metrics.sample_count_error(['haar_frechet'], 1)
    assert 'at least 4 for fid, recall; got 3' in metrics.sample_count_error(['fid', 'recall'], 3)
    assert metrics.sample_count_error(['inception_score'], 1) is None


def test_the_fingerprint_is_of_the_images(split):
    assert quality.fingerprint(split) == quality.fingerprint(make_split(0))
    assert quality.fingerprint(split) != quality.fingerprint(make_split(1))
    assert quality.fingerprint(make_split(0, 3)) != quality.fingerprint(make_split(0, 2))


def test_families_of_metrics():
    assert metrics.families(['haar_recall']) == {'haar': {'haar'}}
    assert metrics.families(['fid', 'inception_score', 'nats_per_dim']) == {
        'inception': {'pool', 'logits_unbiased'}
    }
    assert metrics.needs_reference(['inception_score', 'sfid'], 'inception')
    assert not metrics.needs_reference(['inception_score', 'haar_recall'], 'inception')


def test_levels_are_truncated_as_published_or_rounded():
    pixels = np.array([-2, -1, 0, 0.5, 0.999, 1, 3], np.float32)
    by_hand = ((np.clip(pixels, -1, 1) + 1) / 2 * 255).astype(np.uint8)
    np.testing.assert_array_equal(to_levels(pixels, 'truncate'), by_hand)
    np.testing.assert_array_equal(to_levels(pixels, 'truncate'), [0, 0, 127, 191, 254, 255, 255])
    np.testing.assert_array_equal(to_levels(pixels, 'round'), [0, 0, 128, 191, 255, 255, 255])
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_levels(levels / 127.5 - 1, 'round'), levels)


def test_other_levels_are_spread_over_8_bits():
    np.testing.assert_array_equal(to_8_bits(np.arange(256, dtype=np.uint8), 256), np.arange(256))
    np.testing.assert_array_equal(
        to_8_bits(np.array([0, 8, 15, 16], np.uint8), 17), [0, 128, 239, 255]
    )
