"""The flow over token sequences: a chain of autoregressive blocks of alternating direction.

Suffix letters as in `conditioner`, and X blocks, P features of a token.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tarflow_jax.errors import InputError
from tarflow_jax.flow.attention import IMPLEMENTATIONS, SPLASH_BLOCKS
from tarflow_jax.flow.block import REMAT_POLICIES, FlowBlock
from tarflow_jax.flow.inputs import as_batch, as_labels
from tarflow_jax.values import Boolean, Choice, Integer

SIZE = Integer(1, 2**20)


class DtypeName(Choice):
    """'bfloat16' for itself, for `jnp.bfloat16` and for its NumPy type; likewise 'float32'."""

    def check(self, name: str, value) -> str:
        if value is not None and not isinstance(value, str):
            with contextlib.suppress(TypeError):  # no type at all is refused below
                value = jnp.dtype(value).name
        return super().check(name, value)


class Unroll(Choice):
    """Which loops are unrolled; earlier configs have True for all of them, False for none."""

    def check(self, name: str, value) -> str:
        if isinstance(value, bool):
            value = 'all' if value else 'none'
        return super().check(name, value)


# The values that the attributes may have, except `num_tokens` and `token_dim`.
SETTINGS = {
    'width': SIZE,
    'num_blocks': SIZE,
    'layers_per_block': SIZE,
    'num_classes': Integer(0, 2**24, 'must be at least 0 (for none)'),
    'head_dim': SIZE,
    'volume_preserving': Boolean(),
    'dtype': DtypeName(('float32', 'bfloat16')),
    'attention': Choice(tuple(IMPLEMENTATIONS)),
    'remat': Choice(tuple(REMAT_POLICIES)),
    'unroll': Unroll(('none', 'blocks', 'all')),
}


class TokenFlow(nn.Module):
    """An invertible map of token sequences [B, T, P] with an exact log-determinant.

    Every block keeps its parameters in its own token order and the sequence is reversed between two
    blocks, so the chain is one block scanned over parameters with a leading axis of `num_blocks`
    (and, inside, one layer scanned over `layers_per_block`). Latents are returned in data order:
    token t of the latents stands where token t of the data does.

    A front end turns data into tokens, and the flow into a density of the data. `TarFlow` is the
    front end for images. A front end for audio [B, T * P] would be

        tokens = audio.reshape(-1, num_tokens, token_dim)
        latents, log_det = flow.apply({'params': params}, tokens)
        log_prob = jax.scipy.stats.norm.logpdf(latents).sum(axis=(1, 2)) + log_det

    and would sample with `sampling.inverse.inverse` and the same reshape. One for the latents of
    an autoencoder would add the log-determinant of their normalisation to its tokens. Any bijection
    between data and real-valued tokens will do; its own log-determinant is added to this one.
    Training, scores of splits, sampling in batches and data sets are written for images: besides
    the front end, `likelihood/noise`, `training/objective`, `sampling/batches` and `data/dataset`
    would have to change.

    Attributes:
      num_tokens: T, tokens of a sequence.
      token_dim: P, features of a token.
      width: features of a token inside the transformers, a multiple of `head_dim`.
      num_blocks: autoregressive blocks, alternating in direction.
      layers_per_block: transformer layers in each block.
      num_classes: classes the flow can be conditioned on, 0 for none.
      head_dim: features of one attention head.
      volume_preserving: blocks shift and do not scale; log_det is 0.
      dtype: 'float32' or 'bfloat16', or the type of that name (`jnp.bfloat16`): the type that the
        transformer layers compute in. Parameters, the residual stream, shifts, scales and
        log-determinants are always float32.
      attention: 'xla' on any device, 'cudnn' for bfloat16 on NVIDIA GPUs, 'splash' on TPUs; the
        implementation for whole sequences. The inverse always uses XLA.
      remat: which activations of a layer the backward pass recomputes instead of storing: 'none',
        'dots' (all except queries, keys, values, the MLP's input to GELU, and norms), or 'full'
        (all). Trades time for memory.
      unroll: which loops are unrolled instead of scanned: 'none', 'blocks' (the loop over blocks),
        or 'all' (the loops over layers as well). Unrolled loops compile more slowly and run faster:
        the gradient of a scan copies the activations that the scan within it stores.
    """

    num_tokens: int
    token_dim: int
    width: int
    num_blocks: int
    layers_per_block: int
    num_classes: int = 0
    head_dim: int = 64
    volume_preserving: bool = False
    dtype: str = 'float32'
    attention: str = 'xla'
    remat: str = 'none'
    unroll: str = 'none'

    def __post_init__(self):
        check_attributes(self, {'num_tokens': Integer(1), 'token_dim': Integer(1), **SETTINGS})
        self._check_sizes()
        super().__post_init__()

    def _check_sizes(self):
        if self.width % self.head_dim:
            raise InputError(
                f'width must be a multiple of head_dim; got width={self.width}, '
                f'head_dim={self.head_dim}.'
            )
        if self.attention == 'splash' and self.num_tokens % SPLASH_BLOCKS[-1]:
            raise InputError(
                f"attention='splash' needs a multiple of {SPLASH_BLOCKS[-1]} tokens; got "
                f"{self.num_tokens}. Set attention='xla'."
            )
        if self.attention == 'cudnn' and (self.dtype != 'bfloat16' or self.head_dim % 8):
            raise InputError(
                f"attention='cudnn' needs dtype='bfloat16' and a head_dim that is a multiple of "
                f'8; got dtype={self.dtype!r}, head_dim={self.head_dim}. Change them, or set '
                "attention='xla'."
            )

    def setup(self):
        self.blocks = self.block()

    def init_params(self, key):
        """Parameters of a new flow, which is the identity map; rolled loops compile faster."""
        with nn.logical_axis_rules(()):  # a batch of one cannot be split over devices
            tokens = jnp.zeros((1, self.num_tokens, self.token_dim))
            return self.clone(unroll='none').init(key, tokens)['params']

    def __call__(self, tokens, labels=None):
        """See `forward`."""
        return self.forward(tokens, labels)

    def forward(self, tokens, labels=None):
        """Maps tokens to latents.

        Args:
          tokens: float [B, T, P]; cast to float32.
          labels: int [B] in [0, num_classes), -1 for a sequence without one; None for no labels.
            An unconditional flow ignores them. Under `jit`, where values cannot be checked, a label
            out of range gives NaN in its row.

        Returns:
          latents [B, T, P] and log_det [B] = log|det d latents / d tokens| in nats, float32.
        """
        z_BTP, _, log_det_XB = self._chain(tokens, labels)
        return reorder(z_BTP, self.num_blocks), log_det_XB.sum(axis=0)

    def forward_blocks(self, tokens, labels=None):
        """`forward` block by block: latents [X, B, T, P] and log_det [X, B] of each."""
        _, z_XBTP, log_det_XB = self._chain(tokens, labels)
        latents = [reorder(z_BTP, depth) for depth, z_BTP in enumerate(z_XBTP, start=1)]
        return jnp.stack(latents), log_det_XB

    def _chain(self, tokens, labels):
        """Tokens after the last block, tokens after every block, and every block's log_det."""
        x_BTP = as_batch('tokens', tokens, (self.num_tokens, self.token_dim))
        labels_B = as_labels(labels, len(x_BTP), self.num_classes)

        def forward_and_reverse(block, x_BTP, labels_B):
            z_BTP, log_det_B = block(x_BTP, labels_B)
            z_BTP = z_BTP[:, ::-1]
            return z_BTP, (z_BTP, log_det_B)

        scan_blocks = nn.scan(
            forward_and_reverse,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=nn.broadcast,
            check_constancy_invariants=False,  # there are none; traces half as often
            length=self.num_blocks,
            unroll=1 if self.unroll == 'none' else self.num_blocks,
        )
        z_BTP, (z_XBTP, log_det_XB) = scan_blocks(self.blocks, x_BTP, labels_B)
        return z_BTP, z_XBTP, log_det_XB

    def block(self) -> FlowBlock:
        """The block that, with one slice of `params['blocks']`, is one step of the chain.

        Its method `step` is one step of the inverse.
        """
        return FlowBlock(
            num_tokens=self.num_tokens,
            token_dim=self.token_dim,
            width=self.width,
            num_layers=self.layers_per_block,
            head_dim=self.head_dim,
            num_classes=self.num_classes,
            volume_preserving=self.volume_preserving,
            dtype=jnp.dtype(self.dtype),
            attention=self.attention,
            remat=self.remat,
            unroll=self.unroll == 'all',
            parent=None,
        )


def reorder(tokens_BTP: jax.Array, depth: int) -> jax.Array:
    """Converts tokens between data order and their order after `depth` blocks, either way."""
    return tokens_BTP[:, ::-1] if depth % 2 else tokens_BTP


def check_attributes(module: Any, kinds) -> None:
    """Converts attributes of a new module to their kinds, or raises InputError.

    Args:
      module: a module in its `__post_init__`.
      kinds: for each name, an object with `check(name, value)`, see `values`.
    """
    for name, kind in kinds.items():
        setattr(module, name, kind.check(name, getattr(module, name)))
