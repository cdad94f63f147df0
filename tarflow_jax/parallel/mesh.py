"""The mesh of devices; a single device is a mesh, too."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from tarflow_jax.errors import InputError
from tarflow_jax.parallel.rules import BATCH_AXES

AXES = ('data', 'fsdp', 'tensor')


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arranges devices in a grid with the axes data, fsdp and tensor, near ones side by side.

    Slices of TPUs follow one another along the data axis: only one sum of gradients per step
    crosses the slow network between them.

    Args:
      data: devices that share a batch, each with all parameters; -1 for all remaining devices.
      fsdp: devices that share a batch and the parameters.
      tensor: devices that share the heads and hidden features of every layer.
      devices: the devices to arrange, by default all.

    Raises:
      InputError: the axes do not multiply to the number of devices, or the data axis cannot be
        split over the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = _fill_in(dict(zip(AXES, (data, fsdp, tensor), strict=True)), len(devices))
    num_slices = count_slices(devices)
    if num_slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        if shape[0] % num_slices:
            raise InputError(
                f'mesh.data={shape[0]} cannot be split over {num_slices} slices: only the data '
                f'axis crosses the network between slices. Choose a multiple of {num_slices}, and '
                f'mesh.fsdp and mesh.tensor to fit into one slice of {len(devices) // num_slices} '
                'devices.'
            )
        within = (shape[0] // num_slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            within, (num_slices, 1, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(np.asarray(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def count_slices(devices: Sequence[jax.Device]) -> int:
    """The number of TPU slices, which a data centre's network joins; 1 for other devices."""
    return len({getattr(device, 'slice_index', None) or 0 for device in devices})


def num_batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """The number of equal parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def rows_of_device(num_rows: int, mesh: AbstractMesh) -> int:
    """The rows of a batch on a device: all where there is no mesh or they cannot be shared."""
    return num_rows if mesh.empty else num_rows // math.gcd(num_rows, num_batch_shards(mesh))


def is_of_cpu(mesh: AbstractMesh) -> bool:
    """Whether the devices of a mesh are CPUs; without a mesh, JAX's own choice of a device."""
    return (jax.default_backend() if mesh.empty else mesh.abstract_device.platform) == 'cpu'


def _fill_in(sizes: dict[str, int], num_devices: int) -> tuple[int, ...]:
    """Sizes of the axes, -1 replaced."""
    given = ', '.join(f'{axis}={size}' for axis, size in sizes.items())
    known = math.prod(size for size in sizes.values() if size != -1)
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) == 1 and known > 0 and num_devices % known == 0:
        sizes[free[0]] = num_devices // known
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != num_devices:
        raise InputError(
            f'the mesh {given} does not multiply to the {num_devices} device(s). Every '
            'axis is a positive number, or one of them is -1 for the rest.'
        )
    return tuple(sizes.values())


def padded_batch_size(batch_size: int, num_rows: int, mesh: Mesh) -> int:
    """The size of batches whose rows devices share evenly; the last batch is padded to it."""
    shares = num_batch_shards(mesh)
    return -(-min(batch_size, num_rows) // shares) * shares
