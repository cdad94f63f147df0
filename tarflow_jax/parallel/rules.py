"""Which axis of which array is split over which axis of the mesh, on one screen.

Suffixes of the comments name a parameter's dimensions: blocks (X), layers (L), then B batch,
P patch features, D width, N heads, K head dim, F hidden of the MLP.
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tarflow_jax.errors import InputError

BATCH = P(('data', 'fsdp'))  # the first axis of images, labels, masks
REPLICATED = P()

PARAMS = (
    (r'attention/qkv/kernel', P(None, None, 'fsdp', 'tensor')),  # XLDN3K
    (r'attention/qkv/bias', P(None, None, 'tensor')),  # XLN3K
    (r'attention/out/kernel', P(None, None, 'tensor', None, 'fsdp')),  # XLNKD
    (r'mlp/up/kernel', P(None, None, 'fsdp', 'tensor')),  # XLDF
    (r'mlp/up/bias', P(None, None, 'tensor')),  # XLF
    (r'mlp/down/kernel', P(None, None, 'tensor', 'fsdp')),  # XLFD
    (r'proj_in/kernel', P(None, None, 'fsdp')),  # XPD
    (r'proj_out/kernel', P(None, 'fsdp')),  # XD2P
    (r'(pos|class)_embed', P(None, None, 'fsdp')),  # XTD, XCD
)


def shardings(tree, mesh: Mesh):
    """The sharding of every array of a tree (parameters, a train state) by the end of its path.

    What no rule names, such as biases, norms and counters, is on every device.

    Raises:
      InputError: an axis that a rule splits does not divide evenly.
    """
    return jax.tree_util.tree_map_with_path(lambda path, x: _sharding(path, x, mesh), tree)


def _sharding(path, array, mesh: Mesh) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    spec = next((spec for end, spec in PARAMS if re.search(f'{end}$', name)), REPLICATED)
    for size, axis in zip(array.shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            raise InputError(
                f'{name} of shape {array.shape} cannot be split over mesh.{axis}='
                f'{mesh.shape[axis]}: {size} is no multiple of it. Choose a divisor.'
            )
    return NamedSharding(mesh, spec)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of anything whose first axis is the batch."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Of anything that every device holds whole."""
    return NamedSharding(mesh, REPLICATED)
