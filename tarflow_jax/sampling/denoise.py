"""The score step that removes the noise a model was trained with."""

import functools

import jax
import jax.numpy as jnp

from tarflow_jax.errors import InputError
from tarflow_jax.flow.tarflow import TarFlow, as_labels, check_images


def denoise(model: TarFlow, params, images, labels=None, *, noise_std: float, prior='standard'):
    """One step of Tweedie's formula, x + noise_std^2 * grad_x log p(x | labels) (paper, eq. 7).

    Args:
      model: a flow trained on images with Gaussian noise of standard deviation `noise_std`.
      params: its parameters.
      images: float [B, H, W, C] as `sample` returns them.
      labels: int [B], -1 for no label; None for none at all.
      noise_std: in units of pixels in [-1, 1], at least 0.
      prior: of a volume-preserving model's log p: 'standard' is the density it was trained with,
        as in the published step; 'tracked' has the prior variance its samples are drawn with.

    Returns:
      images [B, H, W, C], float32.
    """
    if not noise_std >= 0:
        raise InputError(f'noise_std must be at least 0; got {noise_std}.')
    check_images(images, model.image_shape)
    labels = as_labels(labels, len(images), model.num_classes)
    return _denoise(model, params, images, labels, float(noise_std), prior)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _denoise(model, params, images, labels, noise_std, prior):
    def total_log_prob(x):
        log_prob = model.apply({'params': params}, x, labels, prior, method='log_prob')
        return log_prob.sum()

    images = jnp.asarray(images, jnp.float32)
    return images + noise_std**2 * jax.grad(total_log_prob)(images)
