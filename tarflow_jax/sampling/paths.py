"""Maps images to latents and back, also block by block, and interpolates between images.

Unlike `sample`, which draws from the prior, all of these take latents as `forward` gives them.
"""

import functools

import jax
import jax.numpy as jnp

from tarflow_jax.errors import InputError
from tarflow_jax.flow.inputs import as_batch, as_labels
from tarflow_jax.flow.parts import map_parts
from tarflow_jax.flow.tarflow import TarFlow, check_params
from tarflow_jax.sampling import inverse as blocks
from tarflow_jax.values import Integer

STEPS = Integer(2)
_PARALLEL = 1e-6  # sine of the angle between latents below which the arc is a straight line


def forward(model: TarFlow, params, images, labels=None):
    """Maps images to latents, `TarFlow.forward` compiled.

    Args:
      model: the flow.
      params: its parameters.
      images: float [B, H, W, C], pixels in [-1, 1].
      labels: int [B], -1 for no label; None for no labels.

    Returns:
      latents [B, H, W, C], and log_det [B] = log|det d latents / d images| in nats, float32.

    Raises:
      InputError: the model cannot serve the shapes or the labels.
    """
    return _forward(*_checked(model, params, 'images', images, labels))


def inverse(model: TarFlow, params, latents, labels=None):
    """Maps latents [B, H, W, C] to images [B, H, W, C], token by token; see `forward`."""
    return journey(model, params, latents, labels)[-1]


def journey(model: TarFlow, params, latents, labels=None):
    """The path from latents to images, block by block.

    Args:
      model: the flow.
      params: its parameters.
      latents: float [B, H, W, C], as `forward` gives them.
      labels: int [B], -1 for no label; None for no labels.

    Returns:
      [num_blocks + 1, B, H, W, C], float32: the latents, then what each block makes of them; the
      last are the images.

    Raises:
      InputError: the model cannot serve the shapes or the labels.
    """
    return _journey(*_checked(model, params, 'latents', latents, labels))


def reconstruct(model: TarFlow, params, images, labels=None):
    """Maps images to latents and back; the result differs from the input by rounding only."""
    latents, _ = forward(model, params, images, labels)
    return inverse(model, params, latents, labels)


def interpolate(model: TarFlow, params, first, last, steps: int, labels=None):
    """Images on the path from one image to another, along a great circle between their latents.

    In the middle of a straight line, latents would have a much smaller norm than draws of the
    prior.

    Args:
      model: the flow.
      params: its parameters.
      first: float [B, H, W, C], the images at one end.
      last: float [B, H, W, C], those at the other.
      steps: images on each path, both ends included, at least 2.
      labels: int [B], -1 for no label, of both ends; None for no labels.

    Returns:
      images [steps, B, H, W, C], float32; the first and the last are those given but for rounding.

    Raises:
      InputError: the model cannot serve the shapes or the labels.
    """
    steps = STEPS.check('steps', steps)
    first, last = (
        as_batch(name, images, model.image_shape)
        for name, images in (('first', first), ('last', last))
    )
    if len(first) != len(last):
        raise InputError(
            f'there must be as many images at both ends; got {len(first)} and {len(last)}.'
        )
    start, _ = forward(model, params, first, labels)
    end, _ = forward(model, params, last, labels)
    latents = jax.vmap(great_circle, (None, None, 0))(start, end, jnp.linspace(0, 1, steps))
    labels = None if labels is None else jnp.tile(jnp.asarray(labels), steps)
    images = inverse(model, params, latents.reshape(-1, *model.image_shape), labels)
    return images.reshape(latents.shape)


def great_circle(start, end, share):
    """Latents at a share of the angle, and of the length, from `start` to `end` [B, H, W, C]."""

    def of_image(start, end):
        lengths = jnp.stack([jnp.linalg.norm(start), jnp.linalg.norm(end)])
        units = jnp.stack([start, end]) / jnp.maximum(lengths, _PARALLEL)[:, None, None, None]
        angle = jnp.arccos(jnp.clip((units[0] * units[1]).sum(), -1, 1))
        sine, shares = jnp.sin(angle), jnp.stack([1 - share, share])
        on_arc = jnp.sin(angle * shares) / jnp.maximum(sine, _PARALLEL)
        weights = jnp.where(sine < _PARALLEL, shares, on_arc)
        # Elementwise: accelerators would round the factors of a matrix product.
        return (shares * lengths).sum() * (weights[:, None, None, None] * units).sum(axis=0)

    return jax.vmap(of_image)(start, end)


def _checked(model, params, name, array, labels):
    check_params(model, params)
    array = as_batch(name, array, model.image_shape)
    return model, params, array, as_labels(labels, len(array), model.num_classes)


@functools.partial(jax.jit, static_argnums=0)
def _forward(model, params, images, labels):
    apply = functools.partial(model.apply, {'params': params}, method='forward')
    return map_parts(apply, model, images, labels)


@functools.partial(jax.jit, static_argnums=0)
def _journey(model, params, latents, labels):
    tokens = blocks.inverse(model.token_flow(), params, model.patchify(latents), labels).tokens
    return jnp.concatenate([latents[None], jax.vmap(model.unpatchify)(tokens[::-1])])
