"""The mesh of devices; one device is a mesh too."""

import math

import jax
from jax.sharding import AxisType, Mesh

from tarflow_jax.errors import InputError

AXES = ('data', 'fsdp', 'tensor')


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """All devices as a grid with the axes data, fsdp and tensor.

    Args:
      data: devices that share a batch, each with all parameters; -1 for all that are left.
      fsdp: devices that share a batch and the parameters.
      tensor: devices that share the heads and hidden features of every layer.

    Raises:
      InputError: the axes do not multiply to the number of devices.
    """
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    devices = jax.device_count()
    known = math.prod(size for size in sizes.values() if size != -1)
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) == 1 and known > 0 and devices % known == 0:
        sizes[free[0]] = devices // known
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != devices:
        asked = ', '.join(f'{axis}={size}' for axis, size in sizes.items())
        raise InputError(
            f'the mesh {asked} does not multiply to the {devices} device(s) there are. Every axis '
            'is a positive number, or one of them is -1 for the rest.'
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
