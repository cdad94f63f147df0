"""The causal transformer: the output at a token depends on it and the tokens before it.

Suffix letters name dimensions: B batch, T tokens, R rows of matrix products (B times T), S attended
tokens, D width, N heads, K head dim, F hidden of the MLP.

The same parameters serve two kinds of input: a whole sequence [B, T, D], or, with a `KVCache`, the
tokens [B, T, D] from a position on, those before them being in the cache. LayerNorm statistics,
softmax and the residual stream are float32 whatever `dtype` is.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from tarflow_jax.flow import attention, panels
from tarflow_jax.flow.attention import PRECISION
from tarflow_jax.flow.norms import LayerNorm

# Names the axes of an activation; the rules in `parallel` say how each is split over devices.
name_axes = nn.with_logical_constraint


def checkpoint_product(product):
    """Names the result of a product with parameters, for `block.REMAT_POLICIES`."""
    return checkpoint_name(product, 'product')


@jax.custom_jvp
def gelu(x):
    """x Phi(x), Phi the distribution function of a standard normal (the exact GELU).

    The custom derivative, Phi(x) + x phi(x), stores one array for the backward pass; automatic
    differentiation of `erf` and the products around it would store three.
    """
    return x * _normal_cdf(x)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    cdf = _normal_cdf(x)
    pdf = jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return x * cdf, dx * (cdf + x * pdf)


def _normal_cdf(x):
    return (1 + jax.lax.erf(x * math.sqrt(0.5))) / 2


class Linear(nn.Module):
    """An affine map from the trailing axes of rows [R, ...] to `features`.

    Rows, because XLA's CPU backend runs the gradient of a plain matrix product two to three times
    as fast as that of a stack of them.

    The kernel starts as U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as in the published models, or at zero;
    the bias at zero. It may be given in `panels` instead.
    """

    features: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32
    zero: bool = False

    @nn.compact
    def __call__(self, x):
        num_rows, *inputs = x.shape
        fan_in, fan_out = math.prod(inputs), math.prod(self.features)
        bound = 0.0 if self.zero else fan_in**-0.5

        def init_kernel(key, shape):
            return jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound)

        rows = x.astype(self.dtype).reshape(num_rows, fan_in)
        if self.has_variable('params', 'panels'):
            y = panels.multiply(rows, self.get_variable('params', 'panels'))
        else:
            kernel = self.param('kernel', init_kernel, (*inputs, *self.features))
            kernel = kernel.astype(self.dtype).reshape(fan_in, fan_out)
            y = jnp.matmul(rows, kernel, precision=PRECISION)
        bias = self.param('bias', nn.initializers.zeros, self.features, jnp.float32)
        y = y + bias.astype(self.dtype).reshape(1, fan_out)  # in rows, so that cuBLAS adds it
        return y.reshape(num_rows, *self.features)


class KVCache(NamedTuple):
    """Keys and values of a layer for the tokens so far, each [B, N, S, K]; of one row, [N, S, K].

    XLA removes a batch axis of size 1 from products. If the cache had that axis, XLA would keep one
    cache for the product and another for the loop carry, and copy both whole for every token.
    """

    keys: jax.Array
    values: jax.Array

    def padded_to(self, length: int) -> 'KVCache':
        """The cache with room for `length` tokens."""
        *rows, size, _ = self.keys.shape
        widths = [(0, 0)] * len(rows) + [(0, length - size), (0, 0)]
        return KVCache(*(jnp.pad(x, widths) for x in self))

    def write(self, position, k_BTNK, v_BTNK) -> 'KVCache':
        """The cache with tokens written from `position` on, in place under jit."""

        def update(x_BNSK, new_BTNK):
            new_BNTK = attention.match_cache_rank(new_BTNK.swapaxes(1, 2), x_BNSK).astype(
                x_BNSK.dtype
            )
            return jax.lax.dynamic_update_slice_in_dim(x_BNSK, new_BNTK, position, axis=-2)

        return KVCache(update(self.keys, k_BTNK), update(self.values, v_BTNK))


class CausalAttention(nn.Module):
    """Multi-head attention of every token to itself and the tokens before it."""

    head_dim: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, h_RD, batch, cache, position, temperature):
        num_rows, width = h_RD.shape
        length, heads = num_rows // batch, width // self.head_dim

        qkv = Linear((heads, 3, self.head_dim), self.dtype, name='qkv')(h_RD)
        qkv = qkv.reshape(batch, length, *qkv.shape[1:])
        qkv = name_axes(qkv, ('batch', 'tokens', 'heads', None, 'head_dim'))
        q_BTNK, k_BTNK, v_BTNK = (checkpoint_product(qkv[:, :, :, part]) for part in range(3))
        if cache is None:
            mixed_BTNK = attention.IMPLEMENTATIONS[self.attention](q_BTNK, k_BTNK, v_BTNK)
        else:
            cache = cache.write(position, k_BTNK, v_BTNK)
            position_T = position + jnp.arange(length)
            keys, values = cache
            mixed_BTNK = attention.attend(q_BTNK, keys, values, position_T, temperature)
        mixed_BTNK = name_axes(mixed_BTNK, ('batch', 'tokens', 'heads', 'head_dim'))
        mixed_RNK = mixed_BTNK.reshape(num_rows, heads, self.head_dim)
        out_RD = Linear((width,), self.dtype, name='out')(mixed_RNK)
        return out_RD, cache


class Mlp(nn.Module):
    """Two linear maps with the exact (erf) GELU between them."""

    expansion: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h_RD):
        width = h_RD.shape[-1]
        h_RF = Linear((self.expansion * width,), self.dtype, name='up')(h_RD)
        h_RF = name_axes(gelu(checkpoint_product(h_RF)), ('batch', 'hidden'))
        return Linear((width,), self.dtype, name='down')(h_RF)


class TransformerLayer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream.

    Shaped to be scanned over layers, which carries the residual stream. `position` is that of the
    first token, `temperature` (a scalar or [B]) divides the attention logits. Without a cache the
    input is a whole sequence.
    """

    head_dim: int
    dtype: jnp.dtype
    attention: str = 'xla'
    mlp_expansion: int = 4

    @nn.compact
    def __call__(self, h_BTD, cache, position, temperature):
        attend = CausalAttention(self.head_dim, self.dtype, self.attention, name='attention')
        mlp = Mlp(self.mlp_expansion, self.dtype, name='mlp')

        batch, _, width = h_BTD.shape
        h_RD = h_BTD.reshape(-1, width)
        normed_RD = LayerNorm(self.dtype, name='attention_norm')(h_RD)
        update_RD, cache = attend(normed_RD, batch, cache, position, temperature)
        h_RD = h_RD + update_RD
        h_RD = h_RD + mlp(LayerNorm(self.dtype, name='mlp_norm')(h_RD))
        h_BTD = name_axes(h_RD.reshape(h_BTD.shape), ('batch', 'tokens', 'width'))
        return h_BTD, cache
