"""Splits a batch into sequential parts, so that a part's activations stay in a CPU's cache.

Programs for a CPU then wait less for memory, above all those that compute gradients. If the model
has few layers, its loops are unrolled as well, because the gradient of a loop copies the
activations that it stores. On other devices parts are larger, and save memory.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AbstractMesh

from tarflow_jax.flow.conditioner import TransformerLayer
from tarflow_jax.parallel.mesh import is_of_cpu, rows_of_device

CACHE_BYTES = 2**21  # of a CPU's core, for hidden features
ACCELERATOR_BYTES = 2**26  # for the same on other devices: gradients of 64 layers keep 6 GB
MAX_UNROLLED = 32  # layers, of which each takes about a second to compile


def count_parts(
    model,
    num_images: int,
    mesh: AbstractMesh | None = None,
    accelerator_bytes: float = math.inf,
) -> int:
    """Returns the number of equal parts into which a batch is divided.

    This is the smallest number for which the hidden features of a device's share of a part fit into
    a CPU's cache, and on other devices into `accelerator_bytes`.

    Args:
      model: a `TarFlow`.
      num_images: the number of images in the batch.
      mesh: the devices that share each part; by default those of the context, without one a single
        device.
      accelerator_bytes: by default unlimited: the batch is one part.
    """
    mesh = mesh or jax.sharding.get_abstract_mesh()
    rows = rows_of_device(num_images, mesh)
    limit = _limit(mesh, accelerator_bytes)
    counts = (n for n in range(1, rows + 1) if rows % n == 0)
    return next(n for n in counts if n == rows or hidden_bytes(model, rows // n) <= limit)


def _limit(mesh: AbstractMesh, accelerator_bytes: float) -> float:
    """Bytes for the hidden features of a part on each device of a mesh."""
    return CACHE_BYTES if is_of_cpu(mesh) else accelerator_bytes


def unroll_for_gradients(model, mesh: AbstractMesh | None = None):
    """The model with its loops unrolled, where that makes its gradients faster."""
    is_small = model.num_blocks * model.layers_per_block <= MAX_UNROLLED
    mesh = mesh or jax.sharding.get_abstract_mesh()
    return model.clone(unroll='all') if is_small and is_of_cpu(mesh) else model


def hidden_bytes(model, num_images: int) -> float:
    """Bytes of the hidden features of one layer's MLP, for a model or the section of a config."""
    height, width, _ = model.image_shape
    num_tokens = height * width / model.patch_size**2
    return 4 * num_images * num_tokens * TransformerLayer.mlp_expansion * model.width


def split(rows, num_parts: int):
    """Parts [N, B / N, ...] of a batch [B, ...]: each takes every N-th row, to be shared evenly."""
    parts = rows.reshape(-1, num_parts, *rows.shape[1:]).swapaxes(0, 1)
    return nn.with_logical_constraint(parts, (None, 'batch') + (None,) * (rows.ndim - 1))


def map_parts(function, model, *batch):
    """`function(*batch)`, each array [B, ...], whose results [B, ...] are computed row by row.

    The parts are those of `count_parts`. On a single device, a batch is padded for them by
    repeating its last row, because 1,021 images, say, have no equal parts but single images.
    """
    num_images = len(batch[0])
    size, mesh = num_images, jax.sharding.get_abstract_mesh()
    count = functools.partial(count_parts, model, mesh=mesh, accelerator_bytes=ACCELERATOR_BYTES)
    if count(size) > 1 and (mesh.empty or mesh.size == 1):
        largest = max(1, int(_limit(mesh, ACCELERATOR_BYTES) // hidden_bytes(model, 1)))  # images
        size += -size % math.ceil(size / largest)
        index = jnp.minimum(jnp.arange(size), num_images - 1)
        batch = [rows[index] for rows in batch] if size > num_images else batch
    num_parts = count(size)
    if num_parts == 1:
        return function(*batch)
    parts = [split(rows, num_parts) for rows in batch]
    results = jax.lax.map(lambda part: function(*part), parts)
    return jax.tree.map(
        lambda x: x.swapaxes(0, 1).reshape(size, *x.shape[2:])[:num_images], results
    )
