"""Causal attention over a whole sequence, by XLA or by a kernel for one kind of device.

Suffix letters as in `conditioner`: B batch, T tokens, S attended tokens, N heads, K head dim. All
implementations compute softmax(q k^T / sqrt(K)) v with the softmax in float32; the kernels never
write the T x T weights to memory.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

# Full float32 products: by default, TPUs and recent GPUs round the factors.
PRECISION = jax.lax.Precision.HIGHEST
MAX_PARTS = 4  # parts of a sequence; a fifth part would save only 1/40 of the token pairs
MIN_QUERIES = 128  # queries of a part; smaller products are slower


def attend(q_BTNK, k_BNSK, v_BNSK, position_T, temperature):
    """Attention of the tokens at positions [T] to all S tokens at or before them, in plain XLA.

    Works on a sequence and on a KV cache. Queries attend in parts, so that few weights of later
    tokens are computed.

    Args:
      q_BTNK: queries of successive tokens, the last of which is one of the S.
      k_BNSK: keys, in the order of positions; of one row, they may be [N, S, K].
      v_BNSK: values, likewise.
      position_T: positions of the queries in the sequence.
      temperature: divides the logits, a scalar or [B].

    Returns:
      mixed values [B, T, N, K], in the dtype of `v_BNSK`.
    """
    length = q_BTNK.shape[1]
    num_before = k_BNSK.shape[-2] - length  # at most, before the first query

    def mix(first, end):
        q, position = q_BTNK[:, first:end], position_T[first:end]
        k, v = (x[..., : num_before + end, :] for x in (k_BNSK, v_BNSK))
        return _attend(q, k, v, position, temperature)

    parts = causal_parts(length, MIN_QUERIES) or [(0, 0)]  # the inverse of one token asks for none
    return jnp.concatenate([mix(first, end) for first, end in parts], axis=1)


def _attend(q_BTNK, k_BNSK, v_BNSK, position_T, temperature):
    """Attention of one part of the queries, see `attend`."""
    batch, length, heads, head_dim = q_BTNK.shape
    # XLA's CPU backend takes longer for products in other orders of the axes.
    logits_BNTS = _products(match_cache_rank(q_BTNK.swapaxes(1, 2), k_BNSK), k_BNSK)
    scale_B = head_dim**-0.5 / jnp.broadcast_to(temperature, (batch,))
    scale_B111 = scale_B.reshape(-1, *(1,) * (logits_BNTS.ndim - 1))
    seen_TS = jnp.arange(k_BNSK.shape[-2])[None] <= position_T[:, None]
    logits_BNTS = jnp.where(seen_TS, logits_BNTS * scale_B111, -jnp.inf)
    weights_BNTS = jax.nn.softmax(logits_BNTS, axis=-1).astype(v_BNSK.dtype)
    mixed_BNTK = jnp.einsum('...TS,...SK->...TK', weights_BNTS, v_BNSK, precision=PRECISION)
    return mixed_BNTK.reshape(batch, heads, length, head_dim).swapaxes(1, 2)


def match_cache_rank(x_BNTK, cache_BNSK):
    """Drops the batch axis of a batch of one if the cache lacks that axis, see `KVCache`."""
    return x_BNTK.reshape(*cache_BNSK.shape[:-2], *x_BNTK.shape[-2:])


@jax.custom_jvp
def _products(q_BNTK, k_BNSK):
    """q k^T in float32. The products of its gradient have factors in the dtype of q and k."""
    return _multiply(q_BNTK, k_BNSK, jnp.float32)


@_products.defjvp
def _products_jvp(primals, tangents):
    (q, k), (dq, dk) = primals, tangents
    change = _multiply(dq, k, k.dtype) + _multiply(q, dk, q.dtype)
    return _products(q, k), change.astype(jnp.float32)


def _multiply(q_BNTK, k_BNSK, dtype):
    return jnp.einsum(
        '...TK,...SK->...TS', q_BNTK, k_BNSK, precision=PRECISION, preferred_element_type=dtype
    )


def xla(q_BTNK, k_BTNK, v_BTNK):
    """Causal attention [B, T, N, K] on any device, in the dtype of its inputs."""
    position_T = jnp.arange(q_BTNK.shape[1])
    return attend(q_BTNK, k_BTNK.swapaxes(1, 2), v_BTNK.swapaxes(1, 2), position_T, 1.0)


def causal_parts(length: int, least: int) -> list[tuple[int, int]]:
    """The (first, end) of up to four parts of a sequence, each of `least` tokens but the last.

    Queries then read keys and values up to the end of their part, not of the sequence. Each part is
    compiled separately.
    """
    step = max(least, math.ceil(length / MAX_PARTS))
    return [(first, min(first + step, length)) for first in range(0, length, step)]


def cudnn(q_BTNK, k_BTNK, v_BTNK, implementation: Literal['cudnn', 'xla'] = 'cudnn'):
    """Causal attention [B, T, N, K] by cuDNN's flash attention, for bfloat16 on NVIDIA GPUs."""
    return jax.nn.dot_product_attention(
        q_BTNK, k_BTNK, v_BTNK, is_causal=True, implementation=implementation
    )


def splash(q_BTNK, k_BTNK, v_BTNK, interpret=False):
    """Causal attention [B, T, N, K] by the Pallas kernel for TPUs; T is a multiple of 128.

    The compiler cannot split a kernel: under activation rules, each device runs it on its own
    rows and heads. With `interpret`, it runs on any device, slowly.
    """
    length, head_dim = q_BTNK.shape[1], q_BTNK.shape[3]

    def on_device(q_BNTK, k_BNTK, v_BNTK) -> Any:
        kernel = _splash_kernel(length, q_BNTK.shape[1], interpret)
        return jax.vmap(kernel)(q_BNTK, k_BNTK, v_BNTK)

    q_BNTK, k_BNTK, v_BNTK = (x.swapaxes(1, 2) for x in (q_BTNK, k_BTNK, v_BTNK))
    if nn.get_logical_axis_rules():
        spec = nn.logical_to_mesh_axes(('batch', 'heads', 'tokens', 'head_dim'))
        on_device = jax.shard_map(on_device, in_specs=spec, out_specs=spec, check_vma=False)
    mixed_BNTK = on_device(q_BNTK * head_dim**-0.5, k_BNTK, v_BNTK)
    return mixed_BNTK.swapaxes(1, 2)


IMPLEMENTATIONS: dict[str, Callable] = {'xla': xla, 'cudnn': cudnn, 'splash': splash}
SPLASH_BLOCKS = (512, 256, 128)  # sides of square tiles; the first that divides T


def _splash_kernel(length, num_heads, interpret):
    from jax.experimental.pallas.ops.tpu.splash_attention import (  # a tenth of jax's import time
        splash_attention_kernel as splash_kernel,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as splash_mask,
    )

    side = next(side for side in SPLASH_BLOCKS if length % side == 0)
    tiles = splash_kernel.BlockSizes(
        block_q=side,
        block_kv=side,
        block_q_dkv=side,
        block_kv_dkv=side,
        block_q_dq=side,
        block_kv_dq=side,
    )
    mask = splash_mask.MultiHeadMask([splash_mask.CausalMask((length, length))] * num_heads)
    return splash_kernel.make_splash_mha_single_device(
        mask, block_sizes=tiles, residual_checkpoint_name='attention', interpret=interpret
    )
