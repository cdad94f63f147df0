"""Completed images are draws from the posterior, which is known where a flow has one block.

There the tokens follow one another, and the first is as it is: with the first known, what follows
is drawn by inverting latents whose first token is the known one.
"""

import jax
import numpy as np
import pytest
from flows import FLOWS

import tarflow_jax
from tarflow_jax.errors import InputError, RunError
from tarflow_jax.sampling import inpaint

MODEL = FLOWS['one_block']
FIRST = np.zeros((4, 4), bool)
FIRST[:2, :2] = True
CHAINS = 500


@pytest.fixture(scope='module')
def params(random_params):
    return random_params(MODEL)


@pytest.fixture(scope='module')
def known():
    image = np.random.default_rng(0).normal(size=MODEL.image_shape).astype(np.float32)
    return np.broadcast_to(image, (CHAINS, *MODEL.image_shape))


def posterior(params, known, labels):
    latents = jax.random.normal(jax.random.key(7), known.shape)
    latents = np.where(FIRST[..., None], known, latents)
    return np.asarray(tarflow_jax.inverse(MODEL, params, latents, labels))


def assert_same_moments(images, expected):
    """Means and spreads of the unknown pixels, as far as so many chains tell."""
    images, expected = (x[:, ~FIRST, 0] for x in (np.asarray(images), expected))
    spread = expected.std(axis=0)
    np.testing.assert_array_less(abs(images.mean(axis=0) - expected.mean(axis=0)), spread / 4)
    np.testing.assert_allclose(images.std(axis=0), spread, rtol=0.2)


def complete(params, known, labels, num_steps=50):
    return tarflow_jax.inpaint(
        *(MODEL, params, known, FIRST, labels),
        key=jax.random.key(0),
        noise_std=0.0,
        num_candidates=30,
        num_steps=num_steps,
    )


def test_pixels_are_drawn_from_the_posterior(params, known):
    labels = np.ones(CHAINS, int)
    completed = complete(params, known, labels)
    assert_same_moments(completed.images, posterior(params, known, labels))
    np.testing.assert_array_equal(completed.labels, labels)
    np.testing.assert_array_equal(completed.images[:, FIRST], known[:, FIRST])
    assert 0.4 < completed.acceptance.mean() < 0.75


def test_labels_are_found_as_often_as_they_are_likely(params, known):
    """The first token says nothing of them; and pixels fit the label that is found with them."""
    completed = complete(params, known, None)
    labels = np.asarray(completed.labels)
    assert abs(labels.mean() - 0.5) < 0.1
    expected = posterior(params, known, labels)
    for label in 0, 1:
        rows = labels == label
        assert_same_moments(completed.images[rows], expected[rows])


def test_some_labels_are_known(params, known):
    labels = np.array([0, 1, -1, -1])
    completed = complete(params, known[:4], labels, num_steps=3)
    np.testing.assert_array_equal(completed.labels[:2], labels[:2])
    assert set(np.asarray(completed.labels[2:])) <= {0, 1}


@pytest.mark.parametrize('batched', [False, True])
def test_noise_is_added_and_removed_and_known_pixels_stay(params, known, batched):
    images = known[:4]
    mask = np.broadcast_to(FIRST[..., None], images.shape) if batched else FIRST[..., None]
    completed = tarflow_jax.inpaint(
        *(MODEL, params, images, mask, [0, 1, -1, -1]),
        key=jax.random.key(0),
        noise_std=0.1,
        num_candidates=30,
        num_steps=3,
    )
    np.testing.assert_array_equal(completed.images[:, FIRST], images[:, FIRST])
    assert np.isfinite(completed.images).all()
    assert np.std(completed.images[:, ~FIRST], axis=0).min() > 0


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(mask=FIRST.astype(int)), 'mask must be True where a pixel is known'),
        (dict(mask=FIRST[:3]), r'of shape \(4, 4\) or \(2, 4, 4, 1\); got bool \(3, 4\)'),
        (dict(num_steps=0), 'num_steps must be at least 1; got 0'),
        (dict(num_candidates=0), 'num_candidates must be at least 1; got 0'),
        (dict(noise_std=-1), 'noise_std must be at least 0; got -1'),
        (dict(labels=[2, 0]), r'labels must lie in 0\.\.1'),
    ],
)
def test_what_cannot_be_is_refused(params, known, changes, words):
    arguments = dict(images=known[:2], mask=FIRST, key=jax.random.key(0), noise_std=0.0)
    with pytest.raises(InputError, match=words):
        tarflow_jax.inpaint(MODEL, params, **{**arguments, **changes})


def with_samples(monkeypatch, broken):
    """Makes three samples NaN, infinite and enormous; with 'label 1', all of that label NaN."""

    def sample_some(model, params, noise, labels):
        images = np.asarray(tarflow_jax.sample(model, params, noise, labels)).copy()
        images[:3] = np.array([np.nan, np.inf, 1e30])[:, None, None, None]
        if broken == 'label 1':
            images[labels == 1] = np.nan
        return jax.numpy.asarray(images)

    monkeypatch.setattr(inpaint, 'sample', sample_some)


def test_samples_that_are_not_finite_start_no_chain(params, known, monkeypatch):
    with_samples(monkeypatch, 'three')
    completed = complete(params, known[:50], None)
    assert np.isfinite(completed.images).all()
    assert completed.acceptance.mean() > 0.4
    assert set(np.asarray(completed.labels)) == {0, 1}


def test_a_label_without_finite_samples_is_told(params, known, monkeypatch):
    with_samples(monkeypatch, 'label 1')
    complete(params, known[:2], np.array([0, -1]), num_steps=2)
    with pytest.raises(RunError, match='none of the 15 samples of the label 1 can be used'):
        complete(params, known[:2], np.array([0, 1]), num_steps=2)


def test_weights_of_candidates_are_not_rounded(known):
    """By default, GPUs and TPUs would round the factors of float32 products."""
    model, labels, columns = MODEL, np.zeros(2, int), known[:4]
    text = str(
        jax.make_jaxpr(inpaint._initialize_chains, static_argnums=7)(
            *(jax.random.key(0), known[:2], known[:2] > 0, labels, columns, np.zeros(4, int)),
            *(0.1, model.num_classes),
        )
    )
    assert text.count('dot_general') == text.count('precision=(Precision.HIGHEST') == 3


def test_labels_of_a_model_without_classes_are_ignored(random_params, random_batch):
    model = FLOWS['pixels']
    images, _ = random_batch(model)
    known = np.ones(model.image_shape[:2], bool)
    known[0] = False
    labels = np.resize([3, -1], len(images))
    settings = dict(key=0, noise_std=0.0, num_candidates=8, num_steps=2)
    given, without = (
        tarflow_jax.inpaint(model, random_params(model), images, known, some, **settings)
        for some in (labels, None)
    )
    assert np.isfinite(given.images).all()
    jax.tree.map(np.testing.assert_array_equal, given, without)
