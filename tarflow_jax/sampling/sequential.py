"""The exact inverse of the flow, token by token."""

import functools

import jax
import jax.numpy as jnp

from tarflow_jax.flow.block import FlowBlock
from tarflow_jax.flow.tarflow import TarFlow, as_images, as_labels, check_params
from tarflow_jax.parallel import rules
from tarflow_jax.sampling.guidance import Guidance
from tarflow_jax.values import Flag, Real

PRIOR_TEMPERATURE = Real(0, 100)


def sample(
    model: TarFlow,
    params,
    noise,
    labels=None,
    *,
    guidance: float = 0.0,
    guide: str = 'both',
    anneal_guidance: bool = False,
    attention_temperature: float = 1.0,
    prior_temperature: float = 1.0,
    return_sequence: bool = False,
):
    """Turns standard normal noise into images.

    Args:
      model: the flow.
      params: its parameters.
      noise: float [B, H, W, C], standard normal. It is scaled by prior_temperature and, for a
        volume-preserving model, by the standard deviation of its prior. Without guidance the
        result is then exactly the image whose latents these are.
      labels: int [B], -1 for no label; None for none at all.
      guidance: weight of the guidance, 0 for none (twice the cost otherwise), at most 1000.
      guide: what is guided, 'both', 'scale' or 'shift'.
      anneal_guidance: whether the weight grows linearly from token to token of each block.
      attention_temperature: temperature of the unguided pass's attention; guides without classes.
      prior_temperature: standard deviation of the prior relative to the trained one.
      return_sequence: whether to return all stages: the noise, then the output of each block.

    Returns:
      images [B, H, W, C], float32, data range [-1, 1] not enforced; with return_sequence,
      [num_blocks + 1, B, H, W, C], the last of which are the images.

    Raises:
      InputError: shapes, labels or guidance that the model cannot serve.
    """
    check_params(model, params)
    how = Guidance.checked(
        guidance, guide, anneal_guidance, attention_temperature, num_classes=model.num_classes
    )
    prior_temperature = PRIOR_TEMPERATURE.check('prior_temperature', prior_temperature)
    Flag().check('return_sequence', return_sequence)
    noise = as_images(noise, model.image_shape, 'noise')
    labels = as_labels(labels, len(noise), model.num_classes)
    sequence = _sample(model, params, noise, labels, how, prior_temperature)
    return sequence if return_sequence else sequence[-1]


@functools.partial(jax.jit, static_argnums=0)
def _sample(model, params, noise, labels, how, prior_temperature):
    latents = noise * prior_temperature
    if model.volume_preserving:
        latents = latents * jnp.sqrt(params['prior_var'])[None]
    return jnp.concatenate([noise[None], inverse_blocks(model, params, latents, labels, how)])


def inverse_blocks(model: TarFlow, params, latents, labels, how: Guidance):
    """Latents [B, H, W, C] back through every block: [num_blocks, B, H, W, C], images last."""
    block = model.block()

    def undo_block(x_BTP, block_params):
        block_params = rules.gathered(block.cast(block_params), of_block=True)
        x_BTP = inverse_block(block, block_params, x_BTP[:, ::-1], labels, how)
        return x_BTP, x_BTP

    z_BTP = model.to_tokens(latents, model.num_blocks)
    _, stages = jax.lax.scan(undo_block, z_BTP, params['blocks'], reverse=True)
    images = [model.from_tokens(x_BTP, depth) for depth, x_BTP in enumerate(stages)]
    return jnp.stack(images[::-1])


def inverse_block(block: FlowBlock, params, z_BTP, labels, how: Guidance):
    """Solves one block for its input: a scan over tokens, each read once into the KV cache.

    x_0 = z_0,  x_{t+1} = z_{t+1} * exp(log_scale(x_<=t)) + shift(x_<=t)
    """
    batch, num_tokens, _ = z_BTP.shape
    labels = how.double(labels, jnp.full_like(labels, -1))
    temperature = how.double(jnp.ones(batch), jnp.full(batch, how.attention_temperature))
    cache = block.empty_cache(len(labels))

    def undo_token(carry, inputs):
        x_BP, cache = carry
        position, z_BP = inputs
        affine, cache = block.apply(
            {'params': params},
            how.double(x_BP, x_BP),
            labels,
            position,
            cache,
            temperature,
            method='step',
        )
        shift, log_scale = how.combine(affine, position, num_tokens)
        x_BP = z_BP * jnp.exp(log_scale) + shift
        return (x_BP, cache), x_BP

    z_TBP = z_BTP.swapaxes(0, 1)
    inputs = (jnp.arange(num_tokens - 1), z_TBP[1:])
    _, x_TBP = jax.lax.scan(undo_token, (z_TBP[0], cache), inputs)
    return jnp.concatenate([z_TBP[:1], x_TBP]).swapaxes(0, 1)
