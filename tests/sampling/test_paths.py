"""From images to latents and back, block by block, and from image to image."""

import jax
import numpy as np
import pytest
from flows import FLOWS

import tarflow_jax
from tarflow_jax.errors import InputError
from tarflow_jax.sampling.paths import great_circle


@pytest.fixture(params=['conditional', 'volume_preserving'])
def flow(request, random_params, random_batch):
    """A model, its parameters, images, and labels for it."""
    model = FLOWS[request.param]
    images, labels = random_batch(model)
    return model, random_params(model), images, labels if model.num_classes else None


def test_the_journey_passes_what_forward_passes(flow, forward_blocks):
    model, params, images, labels = flow
    latents, log_det = tarflow_jax.forward(model, params, images, labels)
    stages = tarflow_jax.journey(model, params, latents, labels)
    passed, log_dets = forward_blocks(model, params, images, labels)
    assert stages.shape == (model.num_blocks + 1, *images.shape)
    np.testing.assert_array_equal(stages[0], latents)
    np.testing.assert_allclose(stages[:-1], passed[::-1], atol=1e-4)
    np.testing.assert_allclose(stages[-1], images, atol=1e-4)
    np.testing.assert_allclose(log_det, log_dets.sum(axis=0), atol=1e-4)


def test_reconstruct_gives_the_images_back(flow):
    model, params, images, labels = flow
    same = tarflow_jax.reconstruct(model, params, images, labels)
    np.testing.assert_allclose(same, images, atol=1e-4)
    again = tarflow_jax.inverse(model, params, *_latents(flow), labels)
    np.testing.assert_array_equal(again, same)


def test_interpolation_begins_and_ends_at_the_images(flow):
    model, params, images, labels = flow
    between = tarflow_jax.interpolate(model, params, images, images[::-1], 5, labels)
    assert between.shape == (5, *images.shape)
    np.testing.assert_allclose(between[0], images, atol=1e-4)
    np.testing.assert_allclose(between[-1], images[::-1], atol=1e-4)
    halfway = great_circle(*_latents(flow), *_latents((*flow[:2], images[::-1], labels)), 0.5)
    expected = tarflow_jax.inverse(model, params, halfway, labels)
    np.testing.assert_allclose(between[2], expected, atol=1e-4)


def _latents(flow):
    return tarflow_jax.forward(*flow)[:1]


def test_a_great_circle_keeps_the_length_of_latents():
    start, end = jax.random.normal(jax.random.key(0), (2, 3, 16, 16, 1))
    lengths = np.linalg.norm(great_circle(start, end, 0.5).reshape(3, -1), axis=1)
    ends = [np.linalg.norm(z.reshape(3, -1), axis=1) for z in (start, end)]
    assert np.all(lengths > 0.95 * np.minimum(*ends))
    np.testing.assert_allclose(great_circle(start, start, 0.3), start, atol=1e-6)


def test_a_great_circle_is_even_in_angle_and_length():
    start, end = jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 1)) * np.array(
        [[[[[1]]]], [[[[3]]]]]
    )
    way = np.stack([great_circle(start, end, share).ravel() for share in np.linspace(0, 1, 5)])
    lengths = np.linalg.norm(way, axis=1)
    np.testing.assert_allclose(np.diff(lengths), (lengths[-1] - lengths[0]) / 4, rtol=1e-4)
    cosines = np.sum(way[1:] * way[:-1], axis=1) / (lengths[1:] * lengths[:-1])
    np.testing.assert_allclose(cosines, cosines[0], rtol=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ((1, None), 'steps must be at least 2; got 1'),
        ((2.5, None), 'steps must be a whole number; got 2.5'),
        ((2, [0, 1]), 'one per row'),
    ],
)
def test_what_cannot_be_is_refused(random_params, random_batch, arguments, words):
    model = FLOWS['conditional']
    images, _ = random_batch(model)
    with pytest.raises(InputError, match=words):
        tarflow_jax.interpolate(model, random_params(model), images, images, *arguments)
    with pytest.raises(InputError, match=r'the model takes latents of shape \[batch, 4, 4, 2\]'):
        tarflow_jax.journey(model, random_params(model), images[..., :1])


def test_a_great_circle_has_no_products_that_accelerators_would_round():
    latents = np.zeros((3, 16, 16, 1), np.float32)
    assert 'dot_general' not in str(jax.make_jaxpr(great_circle)(latents, latents, 0.5))
