"""TarFlow: a chain of autoregressive blocks of alternating direction (Zhai et al., 2412.06329)."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tarflow_jax.errors import InputError
from tarflow_jax.flow import patches
from tarflow_jax.flow.attention import IMPLEMENTATIONS, SPLASH_BLOCKS
from tarflow_jax.flow.block import REMAT_POLICIES, FlowBlock
from tarflow_jax.values import Choice, Flag, ImageShape, Whole, refuse

# Lowest and highest values, and words where 'at least' does not say enough.
SIZES = {
    'patch_size': (1, 2**20, ''),
    'width': (1, 2**20, ''),
    'num_blocks': (1, 2**20, ''),
    'layers_per_block': (1, 2**20, ''),
    'num_classes': (0, 2**24, 'must be at least 0 (for none)'),
    'head_dim': (1, 2**20, ''),
}
CHOICES = {
    'dtype': ('float32', 'bfloat16'),
    'attention': tuple(IMPLEMENTATIONS),
    'remat': tuple(REMAT_POLICIES),
}
PRIORS = ('tracked', 'standard')


class TarFlow(nn.Module):
    """An invertible map between images and latents of the same shape, with an exact log-density.

    Every block keeps its parameters in its own token order and the sequence is reversed between two
    blocks, so the chain is one block scanned over parameters with a leading axis of `num_blocks`
    (and, inside, one layer scanned over `layers_per_block`).

    Attributes:
      image_shape: (H, W, C) of the images.
      patch_size: side of a square patch in pixels; a patch is a token.
      width: features a token has inside the transformers, a multiple of `head_dim`.
      num_blocks: autoregressive blocks, alternating in direction.
      layers_per_block: transformer layers in each.
      num_classes: classes the model can be conditioned on, 0 for none.
      head_dim: features of one attention head.
      volume_preserving: shifts only, no scales; the prior's variance is then tracked in training
        and kept as `params['prior_var']` [H, W, C].
      dtype: 'float32' or 'bfloat16', or the type of that name (`jnp.bfloat16`), what the
        transformer layers compute in; kept as a name. Parameters, the residual stream, shifts,
        scales and log-determinants are float32 always.
      attention: 'xla' on any device, 'cudnn' for bfloat16 on NVIDIA GPUs, 'splash' on TPUs; what
        runs over whole images, while sampling attends token by token.
      remat: what the gradient keeps of each layer: 'none' of it is computed again, all but the
        'dots' with parameters, or the layer in 'full'. Trades time for memory.
      unroll: loops over blocks and layers written out instead of scanned: slower to compile,
        sometimes faster to run on a CPU.
    """

    image_shape: tuple[int, int, int]
    patch_size: int
    width: int
    num_blocks: int
    layers_per_block: int
    num_classes: int = 0
    head_dim: int = 64
    volume_preserving: bool = False
    dtype: str = 'float32'
    attention: str = 'xla'
    remat: str = 'none'
    unroll: bool = False

    def __post_init__(self):
        self._check_types()
        check_sizes(self)
        super().__post_init__()

    def _check_types(self):
        """Makes every attribute what its annotation says, or raises InputError."""
        self.image_shape = ImageShape().check('image_shape', self.image_shape)
        for name, (low, high, words) in SIZES.items():
            setattr(self, name, Whole(low, high, words).check(name, getattr(self, name)))
        for name in ('volume_preserving', 'unroll'):
            setattr(self, name, Flag().check(name, getattr(self, name)))
        self.dtype = _name_of_type(self.dtype)
        for name, allowed in CHOICES.items():
            Choice(allowed).check(name, getattr(self, name))

    def setup(self):
        self.blocks = self.block()
        if self.volume_preserving:
            self.prior_var = self.param('prior_var', nn.initializers.ones, self.image_shape)

    def init_params(self, key):
        """Parameters of a new model, an identity map."""
        with nn.logical_axis_rules(()):  # nothing is split: a batch of one cannot be
            return self.init(key, jnp.zeros((1, *self.image_shape)))['params']

    def __call__(self, images, labels=None):
        """See `forward`."""
        return self.forward(images, labels)

    def forward(self, images, labels=None):
        """Maps images to latents.

        Args:
          images: float [B, H, W, C], data pixels in [-1, 1]; computed with as float32.
          labels: int [B] in [0, num_classes), -1 for an image without one; None for none at all.
            An unconditional model ignores them. Where `jit` traces them, so that they cannot be
            checked, the results of an image whose label is out of range are NaN.

        Returns:
          latents [B, H, W, C] and log_det [B] = log|det d latents / d images| in nats, float32.
        """
        z_BTP, _, log_det = self._chain(images, labels)
        return self.from_tokens(z_BTP, self.num_blocks), log_det.sum(axis=0)

    def forward_blocks(self, images, labels=None):
        """`forward` block by block: latents [num_blocks, B, H, W, C], log_det [num_blocks, B]."""
        _, z, log_det = self._chain(images, labels)
        latents = [self.from_tokens(z_BTP, i + 1) for i, z_BTP in enumerate(z)]
        return jnp.stack(latents), log_det

    def _chain(self, images, labels):
        """Output tokens of the last block, of every block, and every block's log_det."""
        images = as_images(images, self.image_shape)
        x_BTP = patches.patchify(images, self.patch_size)
        labels_B = as_labels(labels, len(images), self.num_classes)

        def apply_block(block, x_BTP, labels_B):
            z_BTP, log_det = block(x_BTP, labels_B)
            z_BTP = z_BTP[:, ::-1]
            return z_BTP, (z_BTP, log_det)

        scan_blocks = nn.scan(
            apply_block,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=nn.broadcast,
            length=self.num_blocks,
            unroll=self.num_blocks if self.unroll else 1,
        )
        z_BTP, (z, log_det) = scan_blocks(self.blocks, x_BTP, labels_B)
        return z_BTP, z, log_det

    def log_prob(self, images, labels=None, prior='tracked'):
        """log p(images | labels) [B] in nats: log N(latents; 0, variance) + log_det.

        The variance is `params['prior_var']` with prior='tracked', the density that samples are
        drawn from, and 1 with prior='standard', the one every model is trained with. They differ
        for a volume-preserving model only.
        """
        Choice(PRIORS).check('prior', prior)
        latents, log_det = self.forward(images, labels)
        variance = self.prior_var[None] if self.volume_preserving and prior == 'tracked' else 1.0
        return normal_log_prob(latents, variance) + log_det

    def block(self) -> FlowBlock:
        """The block that, given one slice of `params['blocks']`, is one step of the chain."""
        rows, columns = patches.grid_shape(self.image_shape, self.patch_size)
        return FlowBlock(
            num_tokens=rows * columns,
            token_dim=self.image_shape[2] * self.patch_size**2,
            width=self.width,
            num_layers=self.layers_per_block,
            head_dim=self.head_dim,
            num_classes=self.num_classes,
            volume_preserving=self.volume_preserving,
            dtype=jnp.dtype(self.dtype),
            attention=self.attention,
            remat=self.remat,
            unroll=self.unroll,
            parent=None,
        )

    def to_tokens(self, images, depth: int):
        """Inverts `from_tokens`."""
        tokens_BTP = patches.patchify(images, self.patch_size)
        return tokens_BTP[:, ::-1] if depth % 2 else tokens_BTP

    def from_tokens(self, tokens_BTP, depth: int):
        """Tokens [B, T, P] as they are after `depth` blocks, as images [B, H, W, C]."""
        tokens_BTP = tokens_BTP[:, ::-1] if depth % 2 else tokens_BTP
        return patches.unpatchify(tokens_BTP, self.patch_size, self.image_shape)


def normal_log_prob(latents, variance=1.0):
    """log N(latents; 0, variance) [B] in nats, summed over the pixels of latents [B, H, W, C]."""
    log_prob = -0.5 * (latents**2 / variance + jnp.log(2 * math.pi * variance))
    return log_prob.sum(axis=(1, 2, 3))


def as_labels(labels, batch: int, num_classes: int) -> jax.Array:
    """Labels as int32 [batch], all -1 for None; concrete ones are checked against `num_classes`."""
    if labels is None:
        return jnp.full((batch,), -1, jnp.int32)
    labels = _as_array('labels', labels)
    if labels.shape != (batch,):
        raise InputError(
            f'labels must have the shape ({batch},), one an image; got {labels.shape}.'
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer) and batch:
        refuse('labels', 'must be whole numbers', labels)
    if num_classes and not isinstance(labels, jax.core.Tracer):
        values = np.asarray(labels)
        wrong = values[(values < -1) | (values >= num_classes)]
        if wrong.size:
            raise InputError(
                f'labels must lie in 0..{num_classes - 1}, or be -1 for no label; '
                f'got {sorted(set(wrong.tolist()))[:5]}.'
            )
    return jnp.asarray(labels, jnp.int32)


def as_images(images, image_shape, name: str = 'images') -> jax.Array:
    """Images, or noise of their shape, as float32 [B, *image_shape].

    Raises:
      InputError: they are of another shape, or whole numbers, which are hardly in [-1, 1].
    """
    images = _as_array(name, images)
    if images.ndim != 4 or images.shape[1:] != image_shape:
        height, width, channels = image_shape
        raise InputError(
            f'the model takes {name} of shape [batch, {height}, {width}, {channels}]; '
            f'got {list(images.shape)}.'
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        way_out = 'Of levels 0..255, take images / 127.5 - 1.' if name == 'images' else ''
        raise InputError(
            f'{name} must be floating-point numbers; got {images.dtype}. {way_out}'.rstrip()
        )
    return jnp.asarray(images, jnp.float32)


def check_params(model, params) -> None:
    """Raises InputError unless `model` is a flow and `params` have the shapes of its own."""
    _check_model(model)
    needed, given = _param_shapes(model), _shapes(params)
    if given == needed:
        return
    differences = [
        f'{name} is {given.get(name, "missing")}, not {needed.get(name, "among them")}'
        for name in sorted({*needed, *given}, key=lambda name: name not in given)
        if given.get(name) != needed.get(name)
    ]
    raise InputError(
        f'params are not those of the model: {"; ".join(differences[:3])}. Give both as `load` '
        'returns them.'
    )


def _check_model(model) -> None:
    if not isinstance(model, TarFlow):
        refuse('model', 'must be a TarFlow', model)


@functools.lru_cache(maxsize=64)
def _param_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return _shapes(jax.eval_shape(model.init_params, jax.random.key(0)))


def _shapes(params) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
    return {name(path): getattr(leaf, 'shape', ()) for path, leaf in leaves}


def _as_array(name: str, value):
    """Arrays as they are, traced ones too; lists, and numbers, as NumPy arrays."""
    if isinstance(value, jax.Array | np.ndarray):
        return value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # lists of unequal lengths
        array = np.array(None)
    if array.dtype.kind not in 'biufcV':  # V has bfloat16
        refuse(name, 'must be an array of numbers', value)
    return array


def _name_of_type(dtype) -> Any:
    """'bfloat16' of `jnp.bfloat16`, of its NumPy type, and of itself."""
    if isinstance(dtype, str) or dtype is None:
        return dtype
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return dtype


def check_sizes(model: TarFlow):
    """Raises InputError, before anything is built, for sizes that do not fit together."""
    patches.grid_shape(model.image_shape, model.patch_size)
    if model.width % model.head_dim:
        raise InputError(
            f'width must be a multiple of head_dim; got width={model.width}, '
            f'head_dim={model.head_dim}.'
        )
    check_attention(model)


def check_attention(model: TarFlow):
    """Raises InputError for an attention kernel that cannot serve the model's sizes or type."""
    rows, columns = patches.grid_shape(model.image_shape, model.patch_size)
    num_tokens = rows * columns
    if model.attention == 'splash' and num_tokens % SPLASH_BLOCKS[-1]:
        raise InputError(
            f"attention='splash' takes a multiple of {SPLASH_BLOCKS[-1]} tokens; the "
            f"{num_tokens} patches of an image are none. Set attention='xla'."
        )
    if model.attention == 'cudnn' and (model.dtype != 'bfloat16' or model.head_dim % 8):
        raise InputError(
            f"attention='cudnn' takes dtype='bfloat16' and a head_dim that is a multiple of 8; got "
            f"dtype={model.dtype!r}, head_dim={model.head_dim}. Set attention='xla', or change "
            'them.'
        )
