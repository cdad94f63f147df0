"""FLOPs of a model by formula: those of its products, two for a multiplication and an addition.

With T tokens of P numbers, width D, MLP hidden E D, L layers in each of N blocks, an image's
forward pass takes

    N (4 T P D   [or 6 T P D with scales: the map in, and that out to shifts and scales]
       + L (2 T (3 + 1 + 2 E) D^2 + 4 T^2 D))

where the first term of a layer is of queries, keys, values, the output map and the MLP, and
4 T^2 D of logits and mixing over all pairs of tokens. A training step takes three times the
forward pass: its backward pass has two products for every one.
"""

import math

from tarflow_jax.flow import TarFlow
from tarflow_jax.flow.conditioner import TransformerLayer
from tarflow_jax.flow.patches import grid_shape


def forward_flops(model: TarFlow) -> float:
    """FLOPs of an image's forward pass."""
    tokens = math.prod(grid_shape(model.image_shape, model.patch_size))
    features = math.prod(model.image_shape) // tokens
    outputs = 1 if model.volume_preserving else 2
    parameters = (4 + 2 * TransformerLayer.mlp_expansion) * model.width**2
    layer = 2 * tokens * parameters + 4 * tokens**2 * model.width
    maps = 2 * tokens * features * model.width * (1 + outputs)
    embedding = 2 * model.num_classes * model.width
    return model.num_blocks * (maps + embedding + model.layers_per_block * layer)


def train_flops(model: TarFlow) -> float:
    """FLOPs of an image in a training step; what is computed a second time does not count."""
    return 3 * forward_flops(model)
