"""The exact inverse of the flow, token by token."""

import functools

import jax
import jax.numpy as jnp

from tarflow_jax.flow.attention import causal_parts
from tarflow_jax.flow.block import FlowBlock
from tarflow_jax.flow.inputs import as_batch, as_labels
from tarflow_jax.flow.tarflow import TarFlow, check_params
from tarflow_jax.flow.tokens import TokenFlow, reorder
from tarflow_jax.parallel import rules
from tarflow_jax.sampling.guidance import NO_GUIDANCE, Guidance
from tarflow_jax.values import Flag, Real

PRIOR_TEMPERATURE = Real(0, 100)
LEAST_STEPS = 16  # of the inverse, between growths of the KV cache


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
    """Maps standard normal noise to images.

    Args:
      model: the flow.
      params: its parameters.
      noise: float [B, H, W, C], standard normal. It is scaled by prior_temperature and, for a
        volume-preserving model, by the standard deviation of its prior. Without guidance, the
        result is the image whose latents are the scaled noise.
      labels: int [B], -1 for no label; None for no labels.
      guidance: weight of the guidance, 0 (none) to 1000; above 0, sampling costs twice as much.
      guide: the guided part of the affine maps, 'both', 'scale' or 'shift'.
      anneal_guidance: whether the weight grows linearly over the tokens of each block.
      attention_temperature: temperature of the unguided pass's attention; guides without classes.
      prior_temperature: standard deviation of the prior relative to the trained one, 0 to 100.
      return_sequence: whether to return all stages: the noise, then the output of each block.

    Returns:
      images [B, H, W, C], float32, not clipped to [-1, 1]; with return_sequence,
      [num_blocks + 1, B, H, W, C], the last of which are the images.

    Raises:
      InputError: the model cannot serve the shapes, the labels or the guidance.
    """
    check_params(model, params)
    settings = Guidance.checked(
        guidance, guide, anneal_guidance, attention_temperature, num_classes=model.num_classes
    )
    prior_temperature = PRIOR_TEMPERATURE.check('prior_temperature', prior_temperature)
    Flag().check('return_sequence', return_sequence)
    noise = as_batch('noise', noise, model.image_shape)
    labels = as_labels(labels, len(noise), model.num_classes)
    sequence = _sample(model, params, noise, labels, settings, prior_temperature)
    return sequence if return_sequence else sequence[-1]


@functools.partial(jax.jit, static_argnums=0)
def _sample(model: TarFlow, params, noise, labels, guidance: Guidance, prior_temperature):
    latents = noise * prior_temperature
    if model.volume_preserving:
        latents = latents * jnp.sqrt(params['prior_var'])[None]
    tokens_XBTP = inverse(model.token_flow(), params, model.patchify(latents), labels, guidance)
    return jnp.concatenate([noise[None], jax.vmap(model.unpatchify)(tokens_XBTP)])


def inverse(flow: TokenFlow, params, latents, labels, guidance: Guidance = NO_GUIDANCE):
    """Maps latents to tokens, block by block.

    Args:
      flow: the flow, of any front end.
      params: its parameters; entries other than `blocks` are ignored.
      latents: float32 [B, T, P], as `flow.forward` returns them.
      labels: int32 [B], -1 for no label.
      guidance: none by default, which gives the exact inverse of `flow.forward`.

    Returns:
      tokens [num_blocks, B, T, P], float32, after each block; the last are the data's.
    """
    block = flow.block()

    @jax.named_scope('inverse_block')
    def invert(z_BTP, block_params):
        block_params = rules.gathered(block.cast(block_params), of_block=True)
        x_BTP = inverse_block(block, block_params, z_BTP[:, ::-1], labels, guidance)
        return x_BTP, x_BTP

    z_BTP = reorder(latents, flow.num_blocks)
    _, x_XBTP = jax.lax.scan(invert, z_BTP, params['blocks'], reverse=True)
    tokens = [reorder(x_BTP, depth) for depth, x_BTP in enumerate(x_XBTP)]
    return jnp.stack(tokens[::-1])


def inverse_block(block: FlowBlock, params, z_BTP, labels_B, guidance: Guidance):
    """Solves one block for its input: scans over tokens, each read once into the KV cache.

    x_0 = z_0,  x_{t+1} = z_{t+1} * exp(log_scale(x_<=t)) + shift(x_<=t)
    """
    batch, num_tokens, _ = z_BTP.shape
    labels_B = guidance.double(labels_B, jnp.full_like(labels_B, -1))
    temperature_B = guidance.double(
        jnp.ones(batch), jnp.full(batch, guidance.attention_temperature)
    )
    params = block.separate_layers(params)

    @jax.named_scope('inverse_token')
    def invert(carry, inputs):
        x_BP, caches = carry
        position, z_BP = inputs
        affine, caches = block.apply(
            {'params': params},
            guidance.double(x_BP, x_BP)[:, None],
            labels_B,
            position,
            caches,
            temperature_B,
            method='step',
        )
        affine = jax.tree.map(lambda p_B1P: p_B1P[:, 0], affine)
        shift, log_scale = guidance.combine(affine, position, num_tokens)
        with jax.named_scope('affine'):
            x_BP = z_BP * jnp.exp(log_scale) + shift
        return (x_BP, caches), x_BP

    z_TBP = z_BTP.swapaxes(0, 1)
    x_BP, solved = z_TBP[0], [z_TBP[:1]]
    caches = block.empty_caches(len(labels_B), 0)
    for first, end in causal_parts(num_tokens - 1, LEAST_STEPS):
        caches = tuple(cache.lengthened(end) for cache in caches)
        inputs = (jnp.arange(first, end), z_TBP[first + 1 : end + 1])
        (x_BP, caches), x_TBP = jax.lax.scan(invert, (x_BP, caches), inputs)
        solved.append(x_TBP)
    return jnp.concatenate(solved).swapaxes(0, 1)
