"""Whether arrays that are yet to be made fit into the devices' memory."""

import math
import os
from pathlib import Path
from typing import Any

import jax

from tarflow_jax.errors import InputError
from tarflow_jax.quantities import format_bytes

# The limit of a container, of both versions of control groups.
_CGROUP_LIMITS = (
    Path('/sys/fs/cgroup/memory.max'),
    Path('/sys/fs/cgroup/memory/memory.limit_in_bytes'),
)
_ADVICE = (
    'Make the model smaller (model.width, model.num_blocks, model.layers_per_block), or '
    'shard it over more devices (mesh.fsdp)'
)


def check_fits(trees: dict[str, Any]) -> None:
    """Checks that arrays fit into the memory of every device, before any is made.

    What a program needs beside them, such as activations, is not known here: see --mode=plan.

    Args:
      trees: shapes with their shardings, all over the same devices, by a name for messages.

    Raises:
      InputError: they do not fit.
    """
    sizes = {name: bytes_per_device(tree) for name, tree in trees.items()}
    sharding = jax.tree.leaves(trees)[0].sharding
    needed, limit = sum(sizes.values()), _limit_of_a_device(sharding.addressable_devices)
    if needed > limit:
        parts = ', '.join(f'{name} {format_bytes(size)}' for name, size in sizes.items() if size)
        raise InputError(
            f'the model does not fit into memory: {parts}, together {format_bytes(needed)} of the '
            f'{format_bytes(limit)} that each of {len(sharding.device_set)} device(s) has. '
            f'{_ADVICE}.'
        )


def bytes_per_device(tree) -> int:
    """Bytes of a tree of arrays on each device, by their shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _limit_of_a_device(devices) -> float:
    """The memory of a device; of CPU devices, an equal part of this machine's."""
    of_device = next(iter(devices)).memory_stats() or {}
    if 'bytes_limit' in of_device:
        return of_device['bytes_limit']
    return host_bytes() / len(devices)


def host_bytes() -> int:
    """The memory that this machine, or the container that the program runs in, has."""
    return min(_host_limits())


def _host_limits():
    yield os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    for path in _CGROUP_LIMITS:
        text = path.read_text().strip() if path.exists() else ''
        if text.isdigit():  # not 'max'
            yield int(text)
