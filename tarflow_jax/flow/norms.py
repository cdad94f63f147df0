"""Layer norms: statistics in float32, normalized rows, which gradients keep, in `dtype`.

A norm with scale and shift rounds to `dtype` twice, before and after them; one that is folded into
the product after it rounds once.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from tarflow_jax.flow.attention import PRECISION

EPSILON = 1e-5


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def normalize(x, dtype):
    """Shifts and scales float32 rows [..., D] to mean 0 and variance 1; the result is in `dtype`.

    With r one over the standard deviation of a row x, and y = r (x - mean(x)),

        dy = r (dx - mean(dx) - y mean(y dx)).

    For that, y and r are saved, named for `block.REMAT_POLICIES`. The product after a norm without
    scale and shift keeps y anyway; automatic differentiation would keep more, all in float32.
    """
    return _standardize(x)[0].astype(dtype)


def _standardize(x):
    """Standardized rows, and one over the standard deviation of each [..., 1]."""
    centered = x - x.mean(axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + EPSILON)
    return centered * rate, rate


@normalize.defjvp
def _normalize_jvp(dtype, primals, tangents):
    (x,), (dx,) = primals, tangents
    y, rate = _standardize(x)
    y, rate = checkpoint_name(y.astype(dtype), 'norm'), checkpoint_name(rate, 'norm')
    return y, _tangent(y, rate, dx)


@functools.partial(jax.checkpoint, prevent_cse=False)  # else the backward pass saves y in float32
def _tangent(y, rate, dx):
    along = (y * dx).mean(axis=-1, keepdims=True)
    return (rate * (dx - dx.mean(axis=-1, keepdims=True) - y * along)).astype(y.dtype)


class LayerNorm(nn.Module):
    """Normalizes rows [R, D], and scales and shifts their features.

    Without parameters it only normalizes, see `fold_norms`.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_RD):
        y_RD = normalize(x_RD, self.dtype)
        if not (self.is_initializing() or self.has_variable('params', 'scale')):
            return y_RD
        scale_D = self.param('scale', nn.initializers.ones, x_RD.shape[-1:], jnp.float32)
        bias_D = self.param('bias', nn.initializers.zeros, x_RD.shape[-1:], jnp.float32)
        return (y_RD * scale_D[None] + bias_D[None]).astype(self.dtype)


def fold_norms(layers):
    """Parameters of layers without the scales and shifts of their norms: products have them.

    With s and b the scale and shift of a norm, K and c the kernel and bias of the product after it,

        (s y + b) K + c = y (diag(s) K) + (b K + c).

    A `TransformerLayer` computes the same with these as with `layers`, up to rounding, and the
    gradients of scale and shift need no sums over its rows.

    Args:
      layers: parameters of `TransformerLayer`, stacked along any number of leading axes.
    """
    layers = dict(layers)
    for norm, part, name in (('attention_norm', 'attention', 'qkv'), ('mlp_norm', 'mlp', 'up')):
        linear = _fold_norm(layers.pop(norm), layers[part][name])
        layers[part] = {**layers[part], name: linear}
    return layers


def _fold_norm(norm, linear):
    kernel, bias = linear['kernel'], linear['bias']
    kernel_LDF = kernel.reshape(*norm['scale'].shape, -1)
    shift_LF = jnp.einsum('...D,...DF->...F', norm['bias'], kernel_LDF, precision=PRECISION)
    return {
        'kernel': (norm['scale'][..., None] * kernel_LDF).reshape(kernel.shape),
        'bias': bias + shift_LF.reshape(bias.shape),
    }
