"""Classification by Bayes' rule: a conditional density is a classifier."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.errors import InputError
from tarflow_jax.flow.inputs import as_batch
from tarflow_jax.flow.parts import map_parts
from tarflow_jax.flow.tarflow import TarFlow, check_params
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.likelihood.scores import as_scored, noisy_images, scored_batches
from tarflow_jax.parallel import arrays


def class_log_probs(model: TarFlow, params, images):
    """Returns log p(y | images) [B, num_classes] for all classes y, equally likely a priori.

    p(y | x) = p(x | y) / sum_y' p(x | y')

    In float32, like all scores.
    """
    check_params(model, params)
    if not model.num_classes:
        raise InputError('the model has no classes (model.num_classes=0): it cannot classify.')
    images = as_batch('images', images, model.image_shape)
    return jax.nn.log_softmax(_joint(as_scored(model), params, images))


def score_split(
    model: TarFlow,
    params,
    split,
    noise: Noise,
    mesh,
    *,
    batch_size: int,
    num_draws: int,
    seed: int,
    before_batch: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Scores the Bayes classifier on the labels of a split.

    log p(x | y) is averaged over `num_draws` draws of the noise before Bayes' rule is applied.
    Arguments as of `scores.score_split`.

    Returns:
      accuracy in [0, 1], and cross_entropy, the mean of -log p(label | image) in nats.
    """
    if not model.num_classes:
        raise InputError(
            'accuracy needs a model with classes, and model.num_classes is 0; take it out of '
            'evaluate.metrics.'
        )
    correct = cross_entropy = 0.0
    for batch in scored_batches(split, mesh, batch_size, before_batch):
        draws = [_noisy_joint(model, noise, params, batch, seed, n) for n in range(num_draws)]
        log_probs = jax.nn.log_softmax(jnp.mean(jnp.stack(draws), axis=0))
        log_probs, labels = arrays.fetch((log_probs, batch['label']))
        real = batch['mask']
        log_probs, labels = log_probs[real].astype(np.float64), labels[real]
        if (labels < 0).any():
            raise InputError(
                'accuracy needs labels, and some images have none; take it out of evaluate.metrics.'
            )
        correct += np.sum(log_probs.argmax(axis=1) == labels)
        cross_entropy -= log_probs[np.arange(len(labels)), labels].sum()
    return {
        'accuracy': float(correct / len(split)),
        'cross_entropy': float(cross_entropy / len(split)),
    }


@functools.partial(jax.jit, static_argnums=0)
def _joint(model, params, images):
    """log p(images | y) [B, num_classes], one class after another to keep memory low."""

    def log_probs(images):
        def log_prob(label):
            labels = jnp.full(len(images), label)
            return model.apply({'params': params}, images, labels, method='log_prob')

        return jax.lax.map(log_prob, jnp.arange(model.num_classes)).T

    return map_parts(log_probs, model, images)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _noisy_joint(model, noise, params, batch, seed, draw):
    return _joint(model, params, noisy_images(noise, batch, seed, draw))
