"""The score step that removes the noise a model was trained with."""

import functools

import jax

from tarflow_jax.flow.inputs import as_batch, as_labels
from tarflow_jax.flow.tarflow import PRIORS, TarFlow, check_params
from tarflow_jax.values import Choice, Real

NOISE_STD = Real(0, 10)  # pixels span a range of 2


def denoise(model: TarFlow, params, images, labels=None, *, noise_std: float, prior='standard'):
    """One step of Tweedie's formula, x + noise_std^2 * grad_x log p(x | labels) (paper, eq. 7).

    Args:
      model: a flow trained on images with Gaussian noise of standard deviation `noise_std`.
      params: its parameters.
      images: float [B, H, W, C] as `sample` returns them.
      labels: int [B], -1 for no label; None for none at all.
      noise_std: in units of pixels in [-1, 1], from 0 to 10.
      prior: of a volume-preserving model's log p: 'standard' is the density it was trained with,
        as in the published step; 'tracked' has the prior variance its samples are drawn with.

    Returns:
      images [B, H, W, C], float32.

    Raises:
      InputError: shapes, labels, a noise or a prior that the model cannot serve.
    """
    check_params(model, params)
    noise_std = NOISE_STD.check('noise_std', noise_std)
    Choice(PRIORS).check('prior', prior)
    images = as_batch('images', images, model.image_shape)
    labels = as_labels(labels, len(images), model.num_classes)
    return _denoise(model, params, images, labels, noise_std, prior)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _denoise(model, params, images, labels, noise_std, prior):
    def total_log_prob(x):
        log_prob = model.apply({'params': params}, x, labels, prior, method='log_prob')
        return log_prob.sum()

    return images + noise_std**2 * jax.grad(total_log_prob)(images)
