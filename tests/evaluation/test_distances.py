"""Against torch-fidelity and pytorch-fid, whose values `tests/golden/inception/make.py` stored."""

import importlib.util
import json

import numpy as np
import pytest
from runs import ROOT

from tarflow_jax.evaluation.distances import (
    InceptionScore,
    frechet_distance,
    perfect_frechet_distance,
    precision_recall,
)
from tarflow_jax.evaluation.moments import Gaussian

FOLDER = ROOT / 'tests' / 'golden' / 'inception'
STORED = json.loads((FOLDER / 'metrics.json').read_text())


@pytest.fixture(scope='module')
def recipe():
    """The module that makes the inputs."""
    spec = importlib.util.spec_from_file_location('inception_recipe', FOLDER / 'recipe.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gaussian(features):
    return Gaussian(features.mean(axis=0), np.cov(features.T))


@pytest.mark.parametrize('case', STORED['frechet_distance'], ids=lambda case: case['samples'])
def test_frechet_distance(recipe, case):
    ours = frechet_distance(*map(gaussian, recipe.fid_features(case['dims'], case['samples'])))
    for package in 'pytorch-fid', 'torch-fidelity':
        assert ours == pytest.approx(case[package], rel=1e-6)


def test_frechet_distance_of_known_gaussians():
    """Covariances that commute: the sum of squared differences of means and deviations."""
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    stds = np.random.default_rng(1).uniform(0, 2, (2, 5))
    stds[0, 0] = 0  # singular
    means = np.random.default_rng(2).normal(size=(2, 5))
    a, b = (Gaussian(m, rotation * s**2 @ rotation.T) for m, s in zip(means, stds, strict=True))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((stds[0] - stds[1]) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert frechet_distance(b, b) == pytest.approx(0, abs=1e-9)


def test_a_perfect_model_scores_the_better_the_more_samples(recipe):
    reference = gaussian(recipe.fid_features(64, 300)[0])
    scores = [perfect_frechet_distance(reference, n) for n in (10, 100, 1000)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 5 * scores[1]
    assert perfect_frechet_distance(reference, 10) == scores[0]

    values, vectors = np.linalg.eigh(reference.cov)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    samples = np.random.default_rng(0).standard_normal((10, 64)) @ root + reference.mean
    assert scores[0] == pytest.approx(frechet_distance(reference, gaussian(samples)), rel=1e-5)


@pytest.mark.parametrize('case', STORED['inception_score'], ids=str)
def test_inception_score(recipe, case):
    logits = recipe.score_logits(case['samples'])
    if case['shuffle']:
        logits = logits[np.random.RandomState(2020).permutation(len(logits))]
    score = InceptionScore(len(logits), logits.shape[1], num_parts=case['splits'])
    index = np.arange(len(logits))
    for batch in np.array_split(index[::-1], 3):
        score.add(logits[batch].astype(np.float32), batch)
    mean, std = score.score()
    assert mean == pytest.approx(case['mean'], rel=1e-4)
    assert std == pytest.approx(case['std'], rel=1e-3, abs=1e-6)


def test_inception_score_of_fewer_samples_than_parts():
    score = InceptionScore(3, 5)
    score.add(np.eye(5)[:3] * 100, np.arange(3))
    assert score.score() == (pytest.approx(1.0), pytest.approx(0.0))


@pytest.mark.parametrize('case', STORED['precision_recall'], ids=str)
def test_precision_and_recall(recipe, case):
    generated, real = recipe.neighbour_features(case['samples'])
    ours = precision_recall(
        real.astype(np.float32), generated.astype(np.float32), k=case['neighbours']
    )
    assert ours == pytest.approx((case['precision'], case['recall']), abs=1e-6)


def test_precision_and_recall_of_sets_of_different_size():
    draws = np.random.default_rng(0)
    real = draws.normal(size=(1500, 4)).astype(np.float32)  # more than are compared at once
    inside = 0.3 * draws.normal(size=(40, 4)).astype(np.float32)
    precision, recall = precision_recall(real, inside)
    assert precision > 0.9
    assert 0 < recall < 0.2
    assert precision_recall(real, inside + 100) == (0, 0)
    assert precision_recall(real, real) == (1, 1)
