"""The training loss, and what training changes in its images and labels."""

import math

import jax
import jax.numpy as jnp

from tarflow_jax.flow.tarflow import TarFlow, normal_log_prob


@jax.named_scope('drop_labels')
def drop_labels(key, labels, rate: float):
    """Replaces a share `rate` of labels [B] by -1, to learn the density without labels as well."""
    rate = jnp.float32(rate)  # or JAX may draw in 64 bits, and drop others
    return jnp.where(jax.random.bernoulli(key, rate, labels.shape), -1, labels)


@jax.named_scope('flip')
def flip_half(key, images):
    """Mirrors images [B, H, W, C] left to right, each with probability one half."""
    half = jnp.float32(0.5)  # or JAX may draw in 64 bits, and mirror others
    flip = jax.random.bernoulli(key, half, (len(images), 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


@jax.named_scope('loss')
def negative_log_likelihood(model: TarFlow, params, images, labels):
    """Returns nats per dimension [B] under a standard normal prior, and the latents [B, H, W, C].

    -(log N(z; 0, 1) + log_det) / (H W C): the published loss plus its dropped constant,
    log(2 pi) / 2.
    """
    latents, log_det = model.apply({'params': params}, images, labels)
    nats = -(normal_log_prob(latents) + log_det)
    return nats / math.prod(model.image_shape), latents
