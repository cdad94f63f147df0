"""A device for each core of a CPU.

By default, JAX treats all cores as one device and divides each operation among them. The operations
of a small flow are too small for that: a separate stream of operations for each core is faster.
"""

import contextlib
import math
import os
from pathlib import Path

import jax

from tarflow_jax.parallel.host_memory import runs_on_cpu

_FLAG = 'xla_force_host_platform_device_count'


def use_cores(mesh, num_rows: int) -> None:
    """Makes the CPU as many devices as the mesh of a config takes and there are cores.

    Must come before JAX counts its devices. Does nothing where the user has chosen their number, or
    where JAX computes on an accelerator.

    Args:
      mesh: the section mesh of a config: sizes by axis, -1 for all remaining devices.
      num_rows: images that the devices are to share evenly.
    """
    number = jax.config.values['jax_num_cpu_devices']
    is_chosen = number != -1 or _FLAG in os.environ.get('XLA_FLAGS', '')
    if is_chosen or not runs_on_cpu():
        return
    num_cores = count_cores()
    count = count_devices(tuple(mesh.values()), num_rows, num_cores)
    jax.config.update('jax_num_cpu_devices', count)


def count_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):  # not on a Mac
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_cpu() -> set[str]:
    """The lines in which Linux describes the model and instructions of the CPU; empty elsewhere."""
    with contextlib.suppress(OSError):
        return set(Path('/proc/cpuinfo').read_text().splitlines())
    return set()


def count_devices(sizes: tuple[int, ...], num_rows: int, num_cores: int) -> int:
    """The largest number of devices that fills the mesh, shares the rows and has cores; 1 at least.

    Args:
      sizes: of the mesh's axes, -1 for all remaining devices.
      num_rows: images that the devices share evenly.
      num_cores: of the CPU.
    """
    known = math.prod(size for size in sizes if size != -1)
    if known < 1 or known > num_cores:
        return 1
    if -1 not in sizes:
        return known
    shares = range(1, num_cores // known + 1)
    return known * max(n for n in shares if num_rows % n == 0)
