"""Names and shapes of the tensors that the published code stores, beside those of our parameters.

Two things differ. Position embeddings there are in image order, here in each block's own token
order, so those of every second block are reversed. Blocks and layers there are named one by one,
here they are stacked. "There" is apple/ml-tarflow, in all that follows.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from tarflow_jax.flow.tarflow import TarFlow

HEAD_DIM = 64  # of every published model; the tensors do not determine it
MASK = 'mask'

# Names of ours and theirs within a block, in the order in which theirs are stored.
BLOCK = {
    'pos_embed': 'pos_embed',
    'class_embed': 'class_embed',
    MASK: 'attn_mask',  # which tokens [T, T] see which; computed here, no parameter
    'proj_in/kernel': 'proj_in.weight',
    'proj_in/bias': 'proj_in.bias',
    'layers': 'attn_blocks',
    'proj_out/kernel': 'proj_out.weight',
    'proj_out/bias': 'proj_out.bias',
}
LAYER = {
    'attention_norm/scale': 'attention.norm.weight',
    'attention_norm/bias': 'attention.norm.bias',
    'attention/qkv/kernel': 'attention.qkv.weight',
    'attention/qkv/bias': 'attention.qkv.bias',
    'attention/out/kernel': 'attention.proj.weight',
    'attention/out/bias': 'attention.proj.bias',
    'mlp_norm/scale': 'mlp.norm.weight',
    'mlp_norm/bias': 'mlp.norm.bias',
    'mlp/up/kernel': 'mlp.main.0.weight',
    'mlp/up/bias': 'mlp.main.0.bias',
    'mlp/down/kernel': 'mlp.main.2.weight',
    'mlp/down/bias': 'mlp.main.2.bias',
}
VARIANCE = 'var'  # of the prior [T, P]; in every file, all ones unless volume-preserving


def tensor_shapes(model: TarFlow) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that the published code stores of a model, in its order."""
    ours: dict[str, Any] = flatten_dict(model.param_shapes()['blocks'], sep='/')
    flow = model.token_flow()
    shapes: dict[str, tuple[int, ...]] = {VARIANCE: (flow.num_tokens, flow.token_dim)}
    for tensor, name, index in entries(model):
        if name == MASK:
            shapes[tensor] = (flow.num_tokens, flow.num_tokens)
        else:
            shapes[tensor] = _published_shape(name, ours[name].shape[len(index) :])
    return shapes


def entries(model: TarFlow) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yields each tensor of the blocks: its published name, our name, and its block and layer."""
    for block in range(model.num_blocks):
        for name, published_name in BLOCK.items():
            if name == 'layers':
                for layer in range(model.layers_per_block):
                    for inner, leaf in LAYER.items():
                        full = f'blocks.{block}.{published_name}.{layer}.{leaf}'
                        yield full, f'layers/{inner}', (block, layer)
            elif name != 'class_embed' or model.num_classes:
                yield f'blocks.{block}.{published_name}', name, (block,)


def _published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape there of a parameter of one block and layer that here has `shape`."""
    if name == 'class_embed':
        return shape[0], 1, shape[1]
    if not name.endswith('kernel'):
        return shape if name == 'pos_embed' else (math.prod(shape),)
    inputs = 2 if name.endswith('attention/out/kernel') else 1  # axes, the others are outputs
    return math.prod(shape[inputs:]), math.prod(shape[:inputs])


def to_published(array: np.ndarray, name: str, block: int) -> np.ndarray:
    """Converts a parameter of one block and layer to its form there."""
    if name == 'pos_embed':
        return array[::-1] if block % 2 else array
    if name == 'class_embed':
        return array[:, None]
    if 'qkv' in name:
        array = array.swapaxes(-3, -2)  # heads x (q, k, v) become (q, k, v) x heads
    return array.reshape(_published_shape(name, array.shape)[::-1]).T


def from_published(tensor: np.ndarray, name: str, block: int, shape: tuple[int, ...]) -> np.ndarray:
    """Inverts `to_published`, to an array of `shape`."""
    if name == 'pos_embed':
        return tensor[::-1] if block % 2 else tensor
    if name == 'class_embed':
        return tensor[:, 0]
    if 'qkv' in name:
        *inputs, heads, three, features = shape
        return tensor.T.reshape(*inputs, three, heads, features).swapaxes(-3, -2)
    return tensor.T.reshape(shape)
