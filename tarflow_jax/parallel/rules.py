"""Sharding rules: which axis of which array is split over which axis of the mesh.

Letters of the comments name a parameter's dimensions: X blocks, L layers, H W C image, T tokens,
P patch features, D width, N heads, K head dim, F hidden of the MLP, C (of class_embed) classes.
"""

import contextlib
import math
import re
from collections.abc import Iterator

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tarflow_jax.errors import InputError

BATCH_AXES = ('data', 'fsdp')
BATCH = P(BATCH_AXES)  # the first axis of images, labels, masks
KEPT_AXIS = 'tensor'  # along which parameters stay sharded while they are used
REPLICATED = P()

# Parameters, their moving average and optimizer state, by the end of their path.
PARAMS = (
    (r'attention/qkv/kernel', P(None, None, 'fsdp', 'tensor')),  # XLDN3K
    (r'attention/qkv/bias', P(None, None, 'tensor')),  # XLN3K
    (r'attention/out/kernel', P(None, None, 'tensor', None, 'fsdp')),  # XLNKD
    (r'mlp/up/kernel', P(None, None, 'fsdp', 'tensor')),  # XLDF
    (r'mlp/up/bias', P(None, None, 'tensor')),  # XLF
    (r'mlp/down/kernel', P(None, None, 'tensor', 'fsdp')),  # XLFD
    (r'(attention/out|mlp/down)/bias', REPLICATED),  # XLD
    (r'(attention|mlp)_norm/(scale|bias)', REPLICATED),  # XLD
    (r'proj_in/kernel', P(None, None, 'fsdp')),  # XPD
    (r'proj_out/kernel', P(None, 'fsdp')),  # XD2P
    (r'proj_(in|out)/bias', REPLICATED),  # XD, X2P
    (r'(pos|class)_embed', P(None, None, 'fsdp')),  # XTD, XCD
    (r'prior_var', REPLICATED),  # HWC
)

# Activations, by the names that the model gives to their axes; axes of other names are not split.
ACTIVATIONS = (
    ('batch', BATCH_AXES),
    ('heads', 'tensor'),
    ('hidden', 'tensor'),
)


def shardings(tree, mesh: Mesh):
    """Returns the sharding of every array of a tree, such as parameters or a train state.

    Scalars, such as counters, are replicated.

    Raises:
      InputError: an axis that a rule splits does not divide evenly.
      LookupError: no rule, or more than one, names an array.
    """
    return jax.tree_util.tree_map_with_path(lambda path, x: _sharding(path, x, mesh), tree)


def split_over_data(shapes, shardings):
    """The shardings of arrays that the rules split over fsdp, split over data instead.

    For arrays that no device needs whole, such as the moments of an optimizer where every device
    has all parameters: each then updates its share of them (Xu et al. 2020, 2004.13336). It is
    the first possible axis that is split, because XLA transposes what it gathers along any other.
    """

    def split(x, sharding: NamedSharding) -> NamedSharding:
        shares = sharding.mesh.shape['data']
        axis = next((axis for axis, n in enumerate(x.shape) if n % shares == 0), None)
        if axis is None or 'fsdp' not in sharding.spec:
            return sharding
        return NamedSharding(sharding.mesh, P(*(None,) * axis, 'data'))

    return jax.tree.map(split, shapes, shardings)


def with_shardings(shapes, shardings):
    """Adds a sharding to each array of a tree of shapes and types (see `jax.eval_shape`)."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _sharding(path, array, mesh: Mesh) -> NamedSharding:
    if not array.shape:
        return NamedSharding(mesh, REPLICATED)
    spec = _spec(path)
    for size, entry in zip(array.shape, spec, strict=False):
        axes = _axes(entry)
        shares = math.prod(mesh.shape[axis] for axis in axes)
        if size % shares:
            raise InputError(
                f'{name_of(path)} of shape {array.shape} cannot be split over mesh.'
                f'{" x mesh.".join(axes)}={shares}: {size} is not a multiple of it. Choose a '
                'divisor.'
            )
    return NamedSharding(mesh, spec)


def _axes(entry) -> tuple[str, ...]:
    """The axes of the mesh over which a `PartitionSpec` splits one dimension."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _spec(path) -> P:
    specs = [spec for end, spec in PARAMS if re.search(f'(^|/)({end})$', name_of(path))]
    if len(specs) != 1:
        raise LookupError(f'{len(specs)} rules name {name_of(path)}; it needs exactly one.')
    return specs[0]


def name_of(path) -> str:
    """Returns a path in a tree as text, such as layers/mlp/up/bias."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


@contextlib.contextmanager
def activation_sharding(mesh: Mesh) -> Iterator[None]:
    """A context in which models split their activations over the mesh, under `jit`, too."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATIONS):
        yield


def gathered(params, *, of_block: bool = False):
    """Gathers parameters in every device's memory, except along the tensor axis.

    Saves communication where parameters are read many times. Outside of `activation_sharding`, it
    changes nothing.

    Args:
      params: the parameters of a model, or of one block.
      of_block: whether `params` is one slice of `params['blocks']`, without the axis X.
    """
    if not nn.get_logical_axis_rules():
        return params

    def gather(path, x):
        split = _spec(path)[1:] if of_block else _spec(path)
        # Split first: otherwise a cast of `x` would follow the communication and enlarge it.
        x = jax.lax.with_sharding_constraint(x, P(*split))
        whole = (KEPT_AXIS if KEPT_AXIS in _axes(entry) else None for entry in split)
        return jax.lax.with_sharding_constraint(x, P(*whole))

    return jax.tree_util.tree_map_with_path(gather, params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds in full."""
    return NamedSharding(mesh, REPLICATED)
