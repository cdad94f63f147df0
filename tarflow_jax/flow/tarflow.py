"""TarFlow: a flow over the patches of images (Zhai et al., 2412.06329)."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tarflow_jax.errors import InputError
from tarflow_jax.flow import patches
from tarflow_jax.flow.inputs import as_batch
from tarflow_jax.flow.tokens import SETTINGS, SIZE, TokenFlow, check_attributes
from tarflow_jax.values import Choice, ImageShape, raise_invalid

ATTRIBUTES = {'image_shape': ImageShape(), 'patch_size': SIZE, **SETTINGS}
PRIORS = ('tracked', 'standard')


class TarFlow(nn.Module):
    """An invertible map between images and latents of the same shape, with an exact log-density.

    Images are cut into patches, the tokens of a `TokenFlow`, whose parameters are this model's.
    Latents are assembled from their tokens in the same way.

    Attributes:
      image_shape: (H, W, C) of the images.
      patch_size: side of a square patch in pixels; must divide H and W.
      width: see `TokenFlow`, as for all attributes that follow.
      volume_preserving: shifts only, no scales; the prior's variance is then tracked during
        training and kept as `params['prior_var']` [H, W, C].
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
    unroll: str = 'none'

    def __post_init__(self):
        check_attributes(self, ATTRIBUTES)
        self.token_flow()  # checks that the sizes fit together
        super().__post_init__()

    def setup(self):
        self.flow = self.token_flow()
        nn.share_scope(self, self.flow)  # the flow's parameters are at the root of the tree
        if self.volume_preserving:
            self.prior_var = self.param(
                'prior_var', nn.initializers.ones, self.image_shape, jnp.float32
            )

    def token_flow(self) -> TokenFlow:
        """The flow over the patches; its parameters are `params`."""
        rows, columns = patches.grid_shape(self.image_shape, self.patch_size)
        return TokenFlow(
            num_tokens=rows * columns,
            token_dim=self.image_shape[2] * self.patch_size**2,
            **{name: getattr(self, name) for name in SETTINGS},
            parent=None,
        )

    def init_params(self, key):
        """Parameters of a new model, which is the identity map; rolled loops compile faster."""
        with nn.logical_axis_rules(()):  # a batch of one cannot be split over devices
            return self.clone(unroll='none').init(key, jnp.zeros((1, *self.image_shape)))['params']

    def param_shapes(self):
        """The tree of the parameters' shapes and types; nothing is computed."""
        return jax.eval_shape(self.init_params, jax.random.key(0))

    def __call__(self, images, labels=None):
        """See `forward`."""
        return self.forward(images, labels)

    def forward(self, images, labels=None):
        """Maps images to latents.

        Args:
          images: float [B, H, W, C], pixels in [-1, 1]; cast to float32.
          labels: see `TokenFlow.forward`.

        Returns:
          latents [B, H, W, C] and log_det [B] = log|det d latents / d images| in nats, float32.
        """
        z_BTP, log_det = self.flow.forward(self.patchify(images), labels)
        return self.unpatchify(z_BTP), log_det

    def forward_blocks(self, images, labels=None):
        """`forward` block by block: latents [num_blocks, B, H, W, C], log_det [num_blocks, B]."""
        z_XBTP, log_det_XB = self.flow.forward_blocks(self.patchify(images), labels)
        return jax.vmap(self.unpatchify)(z_XBTP), log_det_XB

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

    def patchify(self, images):
        """Images [B, H, W, C] as tokens [B, T, P]."""
        images = as_batch('images', images, self.image_shape)
        return patches.patchify(images, self.patch_size)

    def unpatchify(self, tokens_BTP):
        """Tokens [B, T, P] as images [B, H, W, C]; inverts `patchify`."""
        return patches.unpatchify(tokens_BTP, self.patch_size, self.image_shape)


@jax.named_scope('prior')
def normal_log_prob(latents, variance=1.0):
    """log N(latents; 0, variance) [B] in nats, summed over the pixels of latents [B, H, W, C]."""
    log_prob = -0.5 * (latents**2 / variance + jnp.log(2 * math.pi * variance))
    return log_prob.sum(axis=(1, 2, 3))


def check_params(model, params) -> None:
    """Raises InputError unless `model` is a TarFlow and `params` have the shapes of its own."""
    _check_model(model)
    needed, given = _param_shapes(model), _shapes(params)
    if given == needed:
        return
    raise InputError(
        f'params are not those of the model: {shape_differences(given, needed)}. Give both as '
        '`load` returns them.'
    )


def count_parameters(params) -> int:
    """The number of scalars in a tree of parameters, or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def shape_differences(given: Mapping[str, tuple], needed: Mapping[str, tuple]) -> str:
    """The first three differences from the expected shapes, by name."""
    differences = [
        f'{name} is {given.get(name, "missing")}, not {needed[name]}'
        if name in needed
        else f'{name} is unexpected'
        for name in sorted({*needed, *given}, key=lambda name: (name not in given, name))
        if given.get(name) != needed.get(name)
    ]
    return '; '.join(differences[:3])


def _check_model(model) -> None:
    if not isinstance(model, TarFlow):
        raise_invalid('model', 'must be a TarFlow', model)


@functools.lru_cache(maxsize=64)
def _param_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return _shapes(model.param_shapes())


def _shapes(params) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
    return {name(path): getattr(leaf, 'shape', ()) for path, leaf in leaves}
