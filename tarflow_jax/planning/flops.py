"""FLOPs of a model by formula: those of its products, two for a multiplication and an addition.

With T tokens of P numbers, width D, MLP hidden 4 D, L layers in each of N blocks, an image's
forward pass takes

    N (4 T P D   [or 6 T P D with scales: the map in, and that out to shifts and scales]
       + L (24 T D^2 + 4 T^2 D))

where 24 T D^2 = 2 T (3 + 1 + 4 + 4) D^2 is of queries, keys, values, the output map and the MLP,
and 4 T^2 D of logits and mixing over all pairs of tokens; of these a causal model needs
T (T + 1) / 2. A training step takes three times the forward pass: its backward pass has two
products for every one.
"""

import math

from tarflow_jax.flow import TarFlow
from tarflow_jax.flow.patches import grid_shape

TRAINING = 3


def forward_flops(model: TarFlow, *, causal: bool = False) -> float:
    """FLOPs of one image's forward pass; with `causal`, of the pairs of tokens that matter."""
    tokens = math.prod(grid_shape(model.image_shape, model.patch_size))
    features = math.prod(model.image_shape) // tokens
    outputs = 1 if model.volume_preserving else 2
    pairs = tokens * (tokens + 1) / 2 if causal else tokens**2
    layer = 24 * tokens * model.width**2 + 4 * pairs * model.width
    maps = 2 * tokens * features * model.width * (1 + outputs)
    embedding = 2 * model.num_classes * model.width
    return model.num_blocks * (maps + embedding + model.layers_per_block * layer)


def train_flops(model: TarFlow, *, causal: bool = False) -> float:
    """Model FLOPs of one image in a training step; what is computed twice does not count."""
    return TRAINING * forward_flops(model, causal=causal)


def sample_flops(model: TarFlow, *, guided: bool) -> float:
    """FLOPs of one image of the sampler, which reads every token once, with all before it."""
    return forward_flops(model, causal=True) * (2 if guided else 1)


def kernel_flops(name: str, instruction, operands) -> float:
    """FLOPs of a kernel for attention, whose work a compiled module does not tell.

    Products over all pairs of tokens, of which a causal kernel of square tiles computes the share
    (n + 1) / 2n with n tiles a side: two in the forward pass, three for the gradient of queries
    (logits again), four for that of keys and values.
    """
    products = {'fwd': 2, 'dq': 3, 'dkv': 4}
    kind = next((kind for kind in products if f'mha_{kind}' in name), None)
    queries = next((shape for shape in operands if len(shape.dims) == 4), None)
    if kind is None or queries is None:
        return 0.0
    batch, heads, tokens, features = queries.dims
    tiles = max(1, tokens // _tile(instruction.attributes, tokens))
    share = (tiles + 1) / (2 * tiles)
    return products[kind] * 2.0 * batch * heads * tokens**2 * features * share


def _tile(attributes: str, tokens: int) -> int:
    _, found, text = attributes.partition('block_q')
    digits = ''.join(c for c in text[: text.find(',')] if c.isdigit())
    return int(digits) if found and digits else tokens
