"""The exact inverse of a block, token by token."""

import copy

import jax
import jax.numpy as jnp

from tarflow_jax.flow import panels
from tarflow_jax.flow.attention import causal_parts
from tarflow_jax.flow.block import FlowBlock
from tarflow_jax.flow.conditioner import KVCache
from tarflow_jax.sampling.guidance import Guidance

MIN_STEPS = 16  # of the inverse, between growths of the KV cache


def solve_sequentially(step: 'GuidedStep', z_BTP):
    """Solves a block for its input: scans over tokens, each read once into the KV cache.

    x_0 = z_0,  x_{t+1} = z_{t+1} * exp(log_scale(x_<=t)) + shift(x_<=t)
    """

    @jax.named_scope('inverse_token')
    def invert(carry, inputs):
        x_B1P, caches = carry
        position, z_BP = inputs
        x_B1P, caches = step(x_B1P, z_BP[:, None], position, caches)
        return (x_B1P, caches), x_B1P[:, 0]

    step = step.for_single_tokens()
    z_TBP = z_BTP.swapaxes(0, 1)
    x_B1P, solved = z_BTP[:, :1], [z_TBP[:1]]
    caches = step.padded_to((), 0)
    for first, end in causal_parts(z_BTP.shape[1] - 1, MIN_STEPS):
        caches = step.padded_to(caches, end)
        inputs = (jnp.arange(first, end), z_TBP[first + 1 : end + 1])
        (x_B1P, caches), x_TBP = jax.lax.scan(invert, (x_B1P, caches), inputs)
        solved.append(x_TBP)
    return jnp.concatenate(solved).swapaxes(0, 1)


class GuidedStep:
    """Some tokens of one block from those before them: the map whose fixed point is the inverse.

    Args:
      block: the block.
      params: its parameters.
      labels_B: class labels, -1 for none.
      guidance: its settings; where it is active, both passes run as one batch.
    """

    def __init__(self, block: FlowBlock, params, labels_B, guidance: Guidance):
        batch = len(labels_B)
        self._block, self._guidance = block, guidance
        self._params = block.separate_layers(params)
        self._labels_B = guidance.double(labels_B, jnp.full_like(labels_B, -1))
        unguided_B = jnp.full(batch, guidance.attention_temperature)
        self._temperature_B = guidance.double(jnp.ones(batch), unguided_B)

    @property
    def dtype(self):
        """The dtype of the transformer layers."""
        return self._block.dtype

    def for_single_tokens(self) -> 'GuidedStep':
        """The same map, with kernels as products of a single token of each sample read them."""
        layers = self._params['layers']
        if not panels.pay_off(layers, len(self._temperature_B)):
            return self
        step = copy.copy(self)
        step._params = {**self._params, 'layers': panels.in_panels(layers)}
        return step

    def padded_to(self, caches, length: int) -> tuple[KVCache, ...]:
        """The caches of the layers with room for `length` tokens; empty ones of no caches."""
        if not caches:
            return self._block.empty_caches(len(self._labels_B), length)
        return tuple(cache.padded_to(length) for cache in caches)

    def __call__(self, x_BTP, z_BTP, position, caches):
        """Maps T tokens to those that follow them.

        Args:
          x_BTP: tokens from `position` on, those before them being in the caches.
          z_BTP: latents from `position + 1` on.
          position: scalar int array; the last tokens may lie beyond the sequence.
          caches: see `padded_to`, with room for the tokens.

        Returns:
          (tokens from `position + 1` on [B, T, P], new caches).
        """
        affine, caches = self._block.apply(
            {'params': self._params},
            self._guidance.double(x_BTP, x_BTP),
            self._labels_B,
            position,
            caches,
            self._temperature_B,
            method='step',
        )
        position_T1 = position + jnp.arange(x_BTP.shape[1])[:, None]
        shift, log_scale = self._guidance.combine(affine, position_T1, self._block.num_tokens)
        with jax.named_scope('affine'):
            return z_BTP * jnp.exp(log_scale) + shift, caches
