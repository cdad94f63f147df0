"""Bytes that a program must move through a device's memory, by formula.

A compiler moves more: it writes what does not fit into its fast memory, and copies where it would
not have to. What is counted here are the parameters and the state, what the forward pass keeps for
the backward pass, the T x T numbers of attention without a kernel, and the sampler's cache. Below
it no program of this algorithm can go.
"""

import math

import jax
import jax.numpy as jnp

from tarflow_jax.flow import TarFlow
from tarflow_jax.flow.patches import grid_shape
from tarflow_jax.parallel.memory import bytes_a_device
from tarflow_jax.parallel.mesh import batch_shares

FLOAT32 = 4


def of_train_step(model: TarFlow, state, mesh, batch_size: int, microbatches: int) -> float:
    """Bytes of HBM a device that a train step reads and writes."""
    return of_state(state, mesh, microbatches) + _of_layers(model, mesh, batch_size)


def of_gradient(model: TarFlow, mesh, batch_size: int) -> float:
    """Bytes of HBM a device for the gradient of images: parameters are read twice."""
    width, layers = model.width, model.num_blocks * model.layers_per_block
    params = 12 * width**2 * layers * jnp.dtype(model.dtype).itemsize / mesh.shape['tensor']
    return 2 * params + _of_layers(model, mesh, batch_size)


def _of_layers(model: TarFlow, mesh, batch_size: int) -> float:
    """What images take: is kept, written and read; and attention."""
    tokens = batch_size / batch_shares(mesh) * num_tokens(model)
    tensor = mesh.shape['tensor']
    per_token = 2 * kept_bytes(model, tensor) + attention_bytes(model, tensor)
    return model.num_blocks * model.layers_per_block * tokens * per_token


def of_state(state, mesh, microbatches: int = 1) -> float:
    """Bytes of it that do not depend on how many images there are.

    The state is read and written once. For every part of a batch each parameter, whole but for the
    tensor axis, is written and read in the type of the products (two bytes), read again by the
    backward pass, and its gradient written, summed and read (six more).
    """
    own = bytes_a_device(state)
    params = sum(x.size for x in jax.tree.leaves(state.params)) / mesh.shape['tensor']
    return 2 * own + 12 * params * microbatches


def kept_bytes(model: TarFlow, tensor: int) -> float:
    """Bytes that the forward pass keeps of a token in a layer, see `TarFlow.remat`.

    'full' keeps the layer's input; 'dots' also queries, keys and values, the output map's result
    and the MLP's hidden features, and what an attention kernel keeps, its result and a number a
    head. 'none' keeps both normalised inputs, the residual stream between, the activated hidden
    features and the attention's result too.
    """
    width, item = model.width, jnp.dtype(model.dtype).itemsize
    heads = width / model.head_dim
    kernel = item * width + FLOAT32 * heads if model.attention != 'xla' else 0.0
    split = {
        'full': 0.0,
        'dots': item * (3 + 4) * width + kernel,
        'none': item * (3 + 1 + 4 + 4) * width + kernel,
    }[model.remat]
    whole = {
        'full': FLOAT32 * width,
        'dots': (FLOAT32 + item) * width,
        'none': 2 * (FLOAT32 + item) * width,
    }[model.remat]
    return whole + split / tensor


def attention_bytes(model: TarFlow, tensor: int) -> float:
    """Bytes moved for a token in a layer by attention that is no kernel.

    Logits (float32) and weights are written and read in the forward pass, when that is computed a
    second time (not with remat 'none'), and as gradients.
    """
    if model.attention != 'xla':
        return 0.0
    times = 2 if model.remat == 'none' else 3
    pairs = model.width / model.head_dim * num_tokens(model)
    return times * 2 * (FLOAT32 + jnp.dtype(model.dtype).itemsize) * pairs / tensor


def of_sampler(model: TarFlow, mesh, batch_size: int, *, guided: bool) -> float:
    """Bytes of HBM a device for a batch of samples.

    For every token of every block, the layers' parameters are read in the type they compute in, the
    others in float32, and each layer's whole cache of keys and values is read.
    """
    tokens, item = num_tokens(model), jnp.dtype(model.dtype).itemsize
    features = math.prod(model.image_shape) // tokens
    rows = batch_size / batch_shares(mesh) * (2 if guided else 1)
    layer = 12 * model.width**2 * item + 2 * rows * tokens * model.width * item
    maps = 3 * features * model.width * FLOAT32
    return (
        model.num_blocks * tokens * (model.layers_per_block * layer / mesh.shape['tensor'] + maps)
    )


def num_tokens(model: TarFlow) -> int:
    """Patches of an image."""
    return math.prod(grid_shape(model.image_shape, model.patch_size))
