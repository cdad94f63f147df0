"""The likelihood of given images."""

import functools
import math

import jax
import numpy as np

from tarflow_jax.errors import InputError
from tarflow_jax.flow.inputs import as_array, as_batch, as_labels
from tarflow_jax.flow.parts import map_parts
from tarflow_jax.flow.tarflow import TarFlow, check_params
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.likelihood.scores import as_scored, noisy_log_prob
from tarflow_jax.values import INT32_MAX, Integer, raise_invalid

DRAWS = Integer(1)
SEED = Integer(0, INT32_MAX)


def log_prob(model: TarFlow, params, images, labels=None):
    """Returns log p(images | labels) [B] in nats, summed over the pixels, computed in float32.

    It is the density of images with the noise that the model was trained with. Clean images lie
    where few noisy ones do, and 8-bit levels have no density of their own: see `bits_per_dim`.

    Args:
      model: the flow.
      params: its parameters.
      images: float [B, H, W, C], pixels in [-1, 1].
      labels: int [B], -1 for no label; None for no labels.

    Raises:
      InputError: the model cannot serve the shapes or the labels.
    """
    check_params(model, params)
    images = as_batch('images', images, model.image_shape)
    labels = as_labels(labels, len(images), model.num_classes)
    return _log_prob(as_scored(model), params, images, labels)


def bits_per_dim(
    model: TarFlow,
    params,
    levels,
    labels=None,
    *,
    noise: Noise,
    num_draws: int = 8,
    seed: int = 0,
) -> np.ndarray:
    """Bits per dimension of images of whole levels, as an evaluation scores a split.

    For a model that was trained with uniform noise, they bound the length of a code from above, in
    expectation. Under Gaussian noise, they are the same rescaling of a density but no code length,
    and are comparable only among models with the same noise.

    Args:
      model: the flow.
      params: its parameters.
      levels: integers [B, H, W, C] in [0, noise.num_levels).
      labels: int [B], -1 for no label; None for no labels.
      noise: the noise that the model was trained with.
      num_draws: draws of the noise for every image, whose bits are averaged.
      seed: the seed of the noise, which depends on (seed, draw, place in the batch) only.

    Returns:
      float64 [B], NumPy. Their mean over a whole split, in its order, is the split's
      `bits_per_dim` in `evaluation.json` for the same seed and draws.

    Raises:
      InputError: the model cannot serve the shapes, the labels or the levels.
    """
    check_params(model, params)
    num_draws, seed = DRAWS.check('num_draws', num_draws), SEED.check('seed', seed)
    if not isinstance(noise, Noise):
        raise_invalid(
            'noise', 'must be a tarflow_jax.Noise, such as Noise(*flow.noise, 256)', noise
        )
    levels = np.asarray(as_array('levels', levels))
    as_batch('levels', levels.astype(np.float32), model.image_shape)  # checks the shape
    if levels.dtype.kind not in 'iu' or np.any((levels < 0) | (levels >= noise.num_levels)):
        raise InputError(f'levels must be whole numbers in 0..{noise.num_levels - 1}.')
    batch = {
        'image': levels,
        'label': as_labels(labels, len(levels), model.num_classes),
        'index': np.arange(len(levels), dtype=np.int32),
    }
    score = functools.partial(noisy_log_prob, as_scored(model), noise, params, batch, seed)
    log_probs = np.array([score(draw) for draw in range(num_draws)], np.float64)
    return noise.bits_per_dim(-log_probs.mean(axis=0) / math.prod(model.image_shape))


@functools.partial(jax.jit, static_argnums=0)
def _log_prob(model, params, images, labels):
    log_prob = functools.partial(model.apply, {'params': params}, method='log_prob')
    return map_parts(log_prob, model, images, labels)
