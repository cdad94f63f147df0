import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax.flow import TarFlow
from tarflow_jax.training.objective import drop_labels, flip_half, negative_log_likelihood

KEY = jax.random.key(0)


@pytest.mark.parametrize('rate', [0.0, 0.1, 0.5])
def test_labels_are_dropped_at_the_rate_asked_for(rate):
    labels = np.arange(10_000, dtype=np.int32) % 10
    dropped = np.asarray(drop_labels(KEY, labels, rate))
    assert np.mean(dropped == -1) == pytest.approx(rate, abs=0.02)
    np.testing.assert_array_equal(dropped[dropped != -1], labels[dropped != -1])


def test_every_second_image_is_mirrored_whole():
    images = np.random.default_rng(0).normal(size=(400, 2, 3, 1)).astype(np.float32)
    flipped = np.asarray(flip_half(KEY, images))
    stayed = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (stayed ^ mirrored).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=0.1)


def test_the_loss_is_the_published_one_plus_its_constant(random_params, random_batch):
    model = TarFlow(
        (4, 4, 1), 2, width=8, head_dim=4, num_blocks=2, layers_per_block=1, num_classes=3
    )
    params = random_params(model)
    images, labels = random_batch(model)
    nats, latents = jax.jit(lambda *args: negative_log_likelihood(model, *args))(
        params, images, labels
    )
    z, log_det = jax.jit(model.apply)({'params': params}, images, labels)
    np.testing.assert_array_equal(latents, z)
    published = jnp.mean(z**2, axis=(1, 2, 3)) / 2 - log_det / z[0].size
    np.testing.assert_allclose(nats, published + math.log(2 * math.pi) / 2, atol=1e-5)
