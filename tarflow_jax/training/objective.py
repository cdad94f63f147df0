"""The training loss, and what training changes in its images and labels."""

import math

import jax
import jax.numpy as jnp

from tarflow_jax.flow.tarflow import TarFlow, normal_log_prob


def drop_labels(key, labels, rate: float):
    """Labels [B] with a share `rate` of them replaced by -1, so that both densities are learned."""
    return jnp.where(jax.random.bernoulli(key, rate, labels.shape), -1, labels)


def flip_half(key, images):
    """Images [B, H, W, C], every second one on average mirrored left to right."""
    flip = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def negative_log_likelihood(model: TarFlow, params, images, labels):
    """Nats per dimension of each image [B] under a standard normal prior, and the latents.

    -(log N(z; 0, 1) + log_det) / (H W C): the published loss plus its dropped constant,
    log(2 pi) / 2.
    """
    latents, log_det = model.apply({'params': params}, images, labels)
    nats = -(normal_log_prob(latents) + log_det)
    return nats / math.prod(model.image_shape), latents
