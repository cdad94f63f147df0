"""The score step that removes the noise a model was trained with."""

import functools

import jax

from tarflow_jax.flow.inputs import as_batch, as_labels
from tarflow_jax.flow.parts import map_parts, unroll_for_gradients
from tarflow_jax.flow.tarflow import PRIORS, TarFlow, check_params
from tarflow_jax.values import Choice, Float

NOISE_STD = Float(0, 10)  # pixels span a range of 2


def denoise(model: TarFlow, params, images, labels=None, *, noise_std: float, prior='standard'):
    """Takes a step of Tweedie's formula, x + noise_std^2 * grad_x log p(x | labels) (paper, eq. 7).

    Args:
      model: a flow trained on images with Gaussian noise of standard deviation `noise_std`.
      params: its parameters.
      images: float [B, H, W, C] as `sample` returns them.
      labels: int [B], -1 for no label; None for no labels.
      noise_std: 0 to 10, where pixels lie in [-1, 1].
      prior: the prior in log p, see `TarFlow.log_prob`: 'standard', as in the published step, or
        'tracked'.

    Returns:
      images [B, H, W, C], float32.

    Raises:
      InputError: the model cannot serve the shapes, the labels, the noise or the prior.
    """
    check_params(model, params)
    noise_std = NOISE_STD.check('noise_std', noise_std)
    Choice(PRIORS).check('prior', prior)
    images = as_batch('images', images, model.image_shape)
    labels = as_labels(labels, len(images), model.num_classes)
    return _denoise(model, params, images, labels, noise_std, prior)


@functools.partial(jax.jit, static_argnums=(0, 5))
@jax.named_scope('denoise')
def _denoise(model, params, images, labels, noise_std, prior):
    model = unroll_for_gradients(model)

    def total_log_prob(x, labels):
        return model.apply({'params': params}, x, labels, prior, method='log_prob').sum()

    score = map_parts(jax.grad(total_log_prob), model, images, labels)
    return images + noise_std**2 * score
