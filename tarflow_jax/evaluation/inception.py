"""The Inception network of 2015, from whose features FID is computed.

It is the network of TensorFlow's `classify_image_graph_def.pb` (1,008 classes), on which FID, sFID
and the Inception score are defined; torchvision's network of that name is another. Layers have the
names that published state dicts give them, so the parameters are a tree of these names.

The network is only applied, not trained: a batch norm is folded into the convolution
before it (`inception_weights`), and every layer is a convolution with a bias, then a ReLU.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

IMAGE_SIZE = 299
NUM_CLASSES = 1008
# On TPUs and GPUs the default product of float32 numbers is rounded; distances would show it.
PRECISION = jax.lax.Precision.HIGHEST


class Conv(NamedTuple):
    """A row of the tables below: a convolution and a ReLU."""

    name: str
    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = 'SAME'


def average_pool(x):
    """The mean over 3 x 3 pixels, without those outside of the image."""
    return nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False)


def max_pool(x):
    """The maximum over 3 x 3 pixels."""
    return nn.max_pool(x, (3, 3), padding='SAME')


def shrink(x):
    """The maximum over 3 x 3 pixels, with stride 2 and without padding."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding='VALID')


# A branch is a chain of steps; the convolutions of a step that is a tuple run in parallel. A block
# is parallel branches, whose features are concatenated in this order.
Step = Conv | Callable[[jax.Array], jax.Array] | tuple[Conv, ...]
Block = tuple[tuple[Step, ...], ...]

STEM: tuple[Step, ...] = (  # 299 x 299 pixels to 35 x 35
    Conv('Conv2d_1a_3x3', 32, (3, 3), stride=2, padding='VALID'),
    Conv('Conv2d_2a_3x3', 32, (3, 3), padding='VALID'),
    Conv('Conv2d_2b_3x3', 64, (3, 3)),
    shrink,
    Conv('Conv2d_3b_1x1', 80, (1, 1)),
    Conv('Conv2d_4a_3x3', 192, (3, 3), padding='VALID'),
    shrink,
)


def block_35(pool_features: int) -> Block:
    """A block for 35 x 35 pixels: kernels of size 1, 5 and twice 3."""
    return (
        (Conv('branch1x1', 64, (1, 1)),),
        (
            Conv('branch5x5_1', 48, (1, 1)),
            Conv('branch5x5_2', 64, (5, 5)),
        ),
        (
            Conv('branch3x3dbl_1', 64, (1, 1)),
            Conv('branch3x3dbl_2', 96, (3, 3)),
            Conv('branch3x3dbl_3', 96, (3, 3)),
        ),
        (average_pool, Conv('branch_pool', pool_features, (1, 1))),
    )


def block_17(width: int) -> Block:
    """A block for 17 x 17 pixels: kernels of size 1, 7 and twice 7, split into rows and columns."""
    return (
        (Conv('branch1x1', 192, (1, 1)),),
        (
            Conv('branch7x7_1', width, (1, 1)),
            Conv('branch7x7_2', width, (1, 7)),
            Conv('branch7x7_3', 192, (7, 1)),
        ),
        (
            Conv('branch7x7dbl_1', width, (1, 1)),
            Conv('branch7x7dbl_2', width, (7, 1)),
            Conv('branch7x7dbl_3', width, (1, 7)),
            Conv('branch7x7dbl_4', width, (7, 1)),
            Conv('branch7x7dbl_5', 192, (1, 7)),
        ),
        (average_pool, Conv('branch_pool', 192, (1, 1))),
    )


def block_8(pool: Callable[[jax.Array], jax.Array]) -> Block:
    """A block for 8 x 8 pixels: its 3 x 3 branches end in a row and a column kernel in parallel."""
    return (
        (Conv('branch1x1', 320, (1, 1)),),
        (
            Conv('branch3x3_1', 384, (1, 1)),
            (Conv('branch3x3_2a', 384, (1, 3)), Conv('branch3x3_2b', 384, (3, 1))),
        ),
        (
            Conv('branch3x3dbl_1', 448, (1, 1)),
            Conv('branch3x3dbl_2', 384, (3, 3)),
            (Conv('branch3x3dbl_3a', 384, (1, 3)), Conv('branch3x3dbl_3b', 384, (3, 1))),
        ),
        (pool, Conv('branch_pool', 192, (1, 1))),
    )


SHRINK_TO_17: Block = (
    (Conv('branch3x3', 384, (3, 3), stride=2, padding='VALID'),),
    (
        Conv('branch3x3dbl_1', 64, (1, 1)),
        Conv('branch3x3dbl_2', 96, (3, 3)),
        Conv('branch3x3dbl_3', 96, (3, 3), stride=2, padding='VALID'),
    ),
    (shrink,),
)

SHRINK_TO_8: Block = (
    (
        Conv('branch3x3_1', 192, (1, 1)),
        Conv('branch3x3_2', 320, (3, 3), stride=2, padding='VALID'),
    ),
    (
        Conv('branch7x7x3_1', 192, (1, 1)),
        Conv('branch7x7x3_2', 192, (1, 7)),
        Conv('branch7x7x3_3', 192, (7, 1)),
        Conv('branch7x7x3_4', 192, (3, 3), stride=2, padding='VALID'),
    ),
    (shrink,),
)

BLOCKS: dict[str, Block] = {
    'Mixed_5b': block_35(pool_features=32),
    'Mixed_5c': block_35(pool_features=64),
    'Mixed_5d': block_35(pool_features=64),
    'Mixed_6a': SHRINK_TO_17,
    'Mixed_6b': block_17(width=128),
    'Mixed_6c': block_17(width=160),
    'Mixed_6d': block_17(width=160),
    'Mixed_6e': block_17(width=192),
    'Mixed_7a': SHRINK_TO_8,
    'Mixed_7b': block_8(average_pool),
    'Mixed_7c': block_8(max_pool),  # not the mean: so it was trained and published
}

# sFID is of the first channels of TensorFlow's `mixed_6/conv`, after its ReLU. Counted from 0,
# mixed_6 is the seventh block; its `conv` is branch1x1, with which the block's features begin.
SPATIAL_BLOCK = 'Mixed_6d'
SPATIAL_CHANNELS = 7

# The features that are measured, and how many numbers an image has of each.
FEATURES = {'pool': 2048, 'spatial': 17 * 17 * SPATIAL_CHANNELS, 'logits_unbiased': NUM_CLASSES}


class Inception(nn.Module):
    """Images to named features."""

    @nn.compact
    def __call__(self, x) -> dict[str, jax.Array]:
        """Features of images, all float32.

        Args:
          x: float32 [B, 299, 299, 3] in [-1, 1], as `preprocessing.preprocess` makes them.

        Returns:
          'pool' [B, 2048], the last feature maps averaged over the image, for FID; 'spatial'
          [B, 2023], seven maps of 17 x 17, flattened by row, column, channel, for sFID (Nash et al.
          2021, arXiv:2103.03841); 'logits' [B, 1008]; and 'logits_unbiased', the logits without the
          bias, for the Inception score.
        """
        features = {}
        x = _run(STEM, x)
        for name, block in BLOCKS.items():
            x = _Block(block, name=name)(x)
            if name == SPATIAL_BLOCK:
                features['spatial'] = x[..., :SPATIAL_CHANNELS].reshape(x.shape[0], -1)
        features['pool'] = x.mean(axis=(1, 2))
        return features | _Classifier(name='fc')(features['pool'])


class _Block(nn.Module):
    branches: Block

    @nn.compact
    def __call__(self, x):
        return jnp.concatenate([_run(branch, x) for branch in self.branches], axis=-1)


class _Classifier(nn.Module):
    @nn.compact
    def __call__(self, pool):
        kernel_shape = (pool.shape[-1], NUM_CLASSES)
        kernel = self.param('kernel', nn.initializers.zeros, kernel_shape)
        bias = self.param('bias', nn.initializers.zeros, (NUM_CLASSES,))
        unbiased = jnp.dot(pool, kernel, precision=PRECISION)
        return {'logits': unbiased + jnp.expand_dims(bias, 0), 'logits_unbiased': unbiased}


def _run(steps: tuple[Step, ...], x):
    """A chain of steps, as part of the module that is being called."""
    for step in steps:
        if isinstance(step, Conv):
            x = _convolve(step, x)
        elif isinstance(step, tuple):
            x = jnp.concatenate([_convolve(conv, x) for conv in step], axis=-1)
        else:
            x = step(x)
    return x


def _convolve(conv: Conv, x):
    layer = nn.Conv(
        conv.features,
        conv.kernel,
        strides=conv.stride,
        padding=conv.padding,
        precision=PRECISION,
        kernel_init=nn.initializers.zeros,  # it is loaded, and random numbers take time to trace
        name=conv.name,
    )
    return nn.relu(layer(x))
