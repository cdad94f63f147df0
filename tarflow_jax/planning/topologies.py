"""Hardware by name: 'v5e:8x8' is 64 chips, '2xv5e:8x8' two such slices, 'cpu' this machine."""

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from tarflow_jax.errors import InputError
from tarflow_jax.parallel.libtpu import quiet_without_tpu
from tarflow_jax.planning import probe
from tarflow_jax.planning.chips import CHIPS, Chip

CPU = 'cpu'
EXAMPLES = 'cpu, v5e:4x4, v5e:8x8, v5e:16x16, v6e:8x8, v5p:4x4x4, v4:2x2x1, tpu7x:2x2x1, 2xv5e:8x8'
INSTALL = "pip install -e '.[tpu]', in a clone of the repository"
_NAME = re.compile(r'(?:(\d+)x)?(\w+):(\d+(?:x\d+)*)')


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as it was asked for.
      chip: what each device can do.
      devices: of all slices.
      shape: chips of a slice along each dimension of its torus.
      num_slices: slices that a data centre's network joins.
    """

    name: str
    chip: Chip
    devices: Sequence[jax.Device]
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def platform(self) -> str:
        """As in the names of JAX's backends."""
        return 'cpu' if self.chip.is_measured else 'tpu'

    @property
    def num_chips(self) -> int:
        return len(self.devices) // self.chip.devices_per_chip


def use_cpu() -> None:
    """Keeps JAX on this machine's CPU, and compiles everything anew, so that it can be timed.

    To be called before anything is computed.
    """
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_enable_compilation_cache', False)


def split(names: str) -> list[str]:
    """Names separated by commas; raises InputError for one that no topology can have."""
    found = [name.strip() for name in names.split(',') if name.strip()]
    if not found:
        raise InputError(f'--topology is empty. Name some hardware, such as {EXAMPLES}.')
    for name in found:
        _parse(name)
    return list(dict.fromkeys(found))


def describe(name: str) -> Topology:
    """The hardware of a name.

    Raises:
      InputError: there is none of that name, or libtpu is not installed.
    """
    if name == CPU:
        devices = jax.devices(CPU)
        return Topology(CPU, probe.measure_cpu(), devices, (len(devices),))
    num_slices, chip_name, shape = _parse(name)
    chip = CHIPS[chip_name]
    if importlib.util.find_spec('libtpu') is None:
        raise InputError(
            f'to plan for {name} takes the compiler for TPUs, libtpu, which is not installed (no '
            f'TPU is needed). Install it: {INSTALL}, or plan for --topology=cpu.'
        )
    options: dict[str, int | str] = {'num_slices': num_slices} if num_slices > 1 else {}
    if chip.chip_config:
        options['chip_config_name'] = chip.chip_config
    try:
        with _quiet():
            found = topologies.get_topology_desc(
                f'{chip.name}:{"x".join(map(str, shape))}', platform='tpu', **options
            )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition('\n')[0]
        raise InputError(f'there is no topology {name}: {reason}. Known: {EXAMPLES}.') from error
    return Topology(name, chip, found.devices, shape, num_slices)


def _parse(name: str) -> tuple[int, str, tuple[int, ...]]:
    """Number of slices, chip, and the shape of a slice."""
    if name == CPU:
        return 1, CPU, ()
    match = _NAME.fullmatch(name)
    if not match or match[2] not in CHIPS:
        raise InputError(
            f'there is no topology {name!r}. A name is a chip, one of {", ".join(CHIPS)}, and the '
            f'chips of a slice along each axis, with the number of slices before it if there are '
            f'several; or cpu. For example {EXAMPLES}.'
        )
    chip, shape = CHIPS[match[2]], tuple(int(side) for side in match[3].split('x'))
    if len(shape) != chip.dimensions or min(shape) < 1 or match[1] == '0':
        raise InputError(
            f'{name!r} is no topology of {chip.name}, whose chips form a torus of '
            f'{chip.dimensions} dimensions. Known: {EXAMPLES}.'
        )
    return int(match[1] or 1), chip.name, shape


@contextlib.contextmanager
def _quiet():
    """Lets libtpu, which is loaded meanwhile, write nothing to stderr."""
    quiet_without_tpu()
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
