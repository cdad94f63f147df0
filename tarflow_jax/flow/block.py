"""One autoregressive affine block of the flow, in its own token order."""

import operator

import jax
import jax.numpy as jnp
from flax import linen as nn

from tarflow_jax.flow.attention import PRECISION
from tarflow_jax.flow.conditioner import KVCache, Linear, TransformerLayer, name_axes

embed_init = nn.initializers.normal(1e-2, jnp.float32)

# The activations of a layer that are saved for the backward pass; all others are recomputed.
# 'dots' keeps queries, keys, values and the MLP's input to GELU, results of norms, and those of an
# attention kernel.
_SAVEABLE = jax.checkpoint_policies
_save_named = _SAVEABLE.save_only_these_names('product', 'norm', 'attention')


def _save_dots(primitive, *arguments, **settings) -> bool:
    is_kernel = primitive.name.startswith('dot_product_attention_fwd')  # cuDNN's
    return is_kernel or _save_named(primitive, *arguments, **settings)


REMAT_POLICIES = {
    'none': _SAVEABLE.everything_saveable,
    'dots': _save_dots,
    'full': _SAVEABLE.nothing_saveable,
}


class FlowBlock(nn.Module):
    """Shifts and scales every token as a causal transformer predicts from the tokens before it.

    With x the data side and z the latent side (in the paper mu is shift, alpha log_scale),

        z_t = (x_t - shift_t(x_<t)) * exp(-log_scale_t(x_<t)),    z_0 = x_0,
        log|det dz/dx| = -sum_t log_scale_t.

    A new block is exactly the identity: the output projection starts at zero. A volume-preserving
    block has no log_scale.
    """

    num_tokens: int
    token_dim: int
    width: int
    num_layers: int
    head_dim: int
    num_classes: int
    volume_preserving: bool
    dtype: jnp.dtype
    attention: str
    remat: str
    unroll: bool

    def setup(self):
        self.proj_in = Linear((self.width,))
        self.pos_embed = self.param('pos_embed', embed_init, (self.num_tokens, self.width))
        if self.num_classes:
            self.class_embed = self.param('class_embed', embed_init, (self.num_classes, self.width))
        self.layers = nn.scan(
            self._layer_class(),
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=nn.broadcast,
            check_constancy_invariants=False,  # there are none; traces half as often
            length=self.num_layers,
            unroll=self.num_layers if self.unroll else 1,
        )(self.head_dim, self.dtype, self.attention)
        outputs = 1 if self.volume_preserving else 2
        self.proj_out = Linear((outputs, self.token_dim), zero=True)

    def _layer_class(self):
        if self.remat == 'none':
            return TransformerLayer
        # XLA could merge the recomputation with the first computation, but not across loop steps.
        return nn.remat(
            TransformerLayer, policy=REMAT_POLICIES[self.remat], prevent_cse=self.unroll
        )

    def __call__(self, x_BTP, labels_B):
        """Maps whole sequences [B, T, P] to (z [B, T, P], log_det [B] in nats)."""
        h_BTD = self._embed(x_BTP, labels_B, self.pos_embed)
        h_BTD, _ = self.layers(h_BTD, None, None, 1.0)
        shift, log_scale = (self._delay(p) for p in self._head(h_BTD))
        with jax.named_scope('affine'):
            z_BTP = (x_BTP - shift) * jnp.exp(-log_scale)
            return z_BTP, -log_scale.sum(axis=(1, 2))

    def cast(self, params):
        """Casts parameters to `dtype` that layers would otherwise cast at every use.

        Changes no result, and halves the bytes that sampling in bfloat16 reads for every token.
        """
        layers = dict(params['layers'])
        for name in ('attention', 'mlp'):
            layers[name] = jax.tree.map(lambda x: x.astype(self.dtype), layers[name])
        return {**params, 'layers': layers}

    def separate_layers(self, params):
        """The parameters as `step` takes them: a tuple of layers, instead of stacked ones.

        A loop over tokens would otherwise copy every layer's parameters out of the stack each time.
        """
        layer_getters = map(operator.itemgetter, range(self.num_layers))
        layers = tuple(jax.tree.map(take, params['layers']) for take in layer_getters)
        return {**params, 'layers': layers}

    def empty_caches(self, batch: int, length: int) -> tuple[KVCache, ...]:
        """Each layer's cache before the first token, for `batch` rows of `length` tokens."""
        shape = (batch, self.width // self.head_dim, length, self.head_dim)
        first = 1 if batch == 1 else 0  # see `KVCache`
        names = ('batch', 'heads', 'tokens', 'head_dim')[first:]
        empty = name_axes(jnp.zeros(shape[first:], self.dtype), names)
        return (KVCache(empty, empty),) * self.num_layers

    def step(self, x_BTP, labels_B, position, caches, temperature):
        """Predicts the affine maps of the tokens that follow some data-side tokens.

        Args:
          x_BTP: T tokens from `position` on [B, T, P]; those before them are in the caches.
          labels_B: class labels, -1 for none.
          position: scalar int array; the last tokens may lie beyond the sequence.
          caches: see `empty_caches`, with room for the tokens.
          temperature: divides the attention logits, a scalar or [B].

        Returns:
          ((shift, log_scale) of the tokens from `position + 1` on, each [B, T, P], new caches).

        Must be applied to the parameters of `separate_layers`.
        """
        position_T = position + jnp.arange(x_BTP.shape[1])
        pos_embed_TD = jnp.take(self.pos_embed, position_T, axis=0, mode='clip')
        h_BTD = self._embed(x_BTP, labels_B, pos_embed_TD)
        layer = TransformerLayer(self.head_dim, self.dtype, parent=None)
        new_caches = []
        with jax.named_scope('layers'):
            for params, cache in zip(self.get_variable('params', 'layers'), caches, strict=True):
                h_BTD, cache = layer.apply({'params': params}, h_BTD, cache, position, temperature)
                new_caches.append(cache)
        return self._head(h_BTD), tuple(new_caches)

    def _embed(self, x_BTP, labels_B, pos_embed_TD):
        h_RD = self.proj_in(x_BTP.reshape(-1, self.token_dim))
        h_BTD = h_RD.reshape(*x_BTP.shape[:2], self.width) + pos_embed_TD[None]
        if self.num_classes:
            h_BTD = h_BTD + self._class_embedding(labels_B)[:, None]
        return name_axes(h_BTD, ('batch', 'tokens', 'width'))

    def _class_embedding(self, labels_B):
        """Rows of the class table [B, D]: their mean for label -1, NaN for labels out of range."""
        one_hot_BC = jax.nn.one_hot(labels_B, self.num_classes)
        is_class_B = (labels_B >= -1) & (labels_B < self.num_classes)
        weights_BC = jnp.where(labels_B[:, None] < 0, 1 / self.num_classes, one_hot_BC)
        weights_BC = jnp.where(is_class_B[:, None], weights_BC, jnp.nan)
        return jnp.matmul(weights_BC, self.class_embed, precision=PRECISION)

    def _head(self, h_BTD):
        out = self.proj_out(h_BTD.reshape(-1, self.width))
        out = out.reshape(*h_BTD.shape[:2], *out.shape[1:])
        if self.volume_preserving:
            shift = out[:, :, 0]
            return shift, jnp.zeros_like(shift)
        return out[:, :, 1], out[:, :, 0]

    def _delay(self, p_BTP):
        """Shifts predictions by one token: the output at token t acts on token t + 1."""
        return jnp.pad(p_BTP[:, :-1], ((0, 0), (1, 0), (0, 0)))
