"""Hardware by name: v5e:8x8 is 64 chips, 2xv5e:8x8 two slices, h100 a GPU, cpu this machine."""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from tarflow_jax.errors import InputError
from tarflow_jax.parallel.libtpu import quiet_without_tpu
from tarflow_jax.planning.chips import CHIPS, Chip, measure_cpu
from tarflow_jax.planning.gpus import GPUS, Gpu

CPU = 'cpu'
EXAMPLES = 'cpu, h100, v5e:1x1, v5e:4x4, v6e:8x8, v5p:4x4x4, v4:2x2x1, tpu7x:2x2x1, 2xv5e:8x8'
_CHIPS_OF_A_HOST = 4  # of which a smaller slice is a part
_NAME = re.compile(r'(?:(\d+)x)?(\w+):(\d+(?:x\d+)*)')


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for, of all slices; `shape` is that of one slice's torus, in chips."""

    name: str
    chip: Chip
    devices: Sequence[jax.Device]
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def num_chips(self) -> int:
        return len(self.devices) // self.chip.devices_per_chip

    @property
    def num_hosts(self) -> int:
        return len({device.process_index for device in self.devices})


def make_topologies(names: str) -> list[Topology]:
    """The hardware of names separated by commas.

    Keeps JAX on this machine's CPU, unless it has looked for devices before, and lets it compile
    everything afresh, so that compilations can be timed.

    Raises:
      InputError: a name is unknown, or the compiler for it is not installed.
    """
    jax.config.update('jax_platforms', CPU)
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # which remembers whether it is used
    parts = dict.fromkeys(name.strip() for name in names.split(',') if name.strip())
    if not parts:
        raise InputError(f'--topology is empty. Name some hardware, such as {EXAMPLES}.')
    return [make_topology(name) for name in parts]


def make_topology(name: str) -> Topology:
    """The hardware of one name; see `make_topologies`, which prepares JAX for it."""
    if name == CPU:
        return _cpu()
    return _gpu(GPUS[name]) if name in GPUS else _tpu(name, *_parse(name))


def _cpu() -> Topology:
    devices = jax.devices(CPU)
    return Topology(CPU, measure_cpu(), devices, (len(devices),))


def _gpu(gpu: Gpu) -> Topology:
    try:
        description = topologies.get_topology_desc(
            platform='cuda', target_config=gpu.target_config(), topology='1x1x1'
        )
    except NotImplementedError as error:  # JAX has found no plugin
        raise InputError(
            f"planning for {gpu.name} requires JAX's compiler for NVIDIA GPUs, which is not "
            "installed (no GPU is needed). Install it: pip install -e '.[cuda]', in a clone of the "
            'repository, or plan for --topology=cpu.'
        ) from error
    return Topology(gpu.name, gpu.chip(), description.devices, (1,))


def _tpu(name: str, num_slices: int, chip: Chip, shape: tuple[int, ...]) -> Topology:
    if importlib.util.find_spec('libtpu') is None:
        raise InputError(
            f'planning for {name} requires libtpu, the TPU compiler, which is not installed (no '
            "TPU is needed). Install it: pip install -e '.[tpu]', in a clone of the repository, or "
            'plan for --topology=cpu.'
        )
    options: dict[str, Any] = {'num_slices': num_slices} if num_slices > 1 else {}
    options |= {'chip_config_name': chip.config} if chip.config else {}
    if math.prod(shape) < _CHIPS_OF_A_HOST:
        options['chips_per_host_bounds'] = (*shape, 1)[:3]
    try:
        with quiet_without_tpu():
            description = topologies.get_topology_desc(
                f'{chip.name}:{"x".join(map(str, shape))}', platform='tpu', **options
            )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition('\n')[0].removeprefix('INVALID_ARGUMENT: ').rstrip('.')
        raise InputError(f'there is no topology {name}: {reason}. Known: {EXAMPLES}.') from error
    return Topology(name, chip, description.devices, shape, num_slices)


def _parse(name: str) -> tuple[int, Chip, tuple[int, ...]]:
    """Number of slices, chip, and the shape of a slice."""
    match = _NAME.fullmatch(name)
    if not match or match[2] not in CHIPS:
        raise InputError(
            f'there is no topology {name!r}. A name is a TPU, one of {", ".join(CHIPS)}, and the '
            f'chips of a slice along each axis, with the number of slices before it if there are '
            f'several; or a GPU, one of {", ".join(GPUS)}; or cpu. For example {EXAMPLES}.'
        )
    chip, shape = CHIPS[match[2]], tuple(int(side) for side in match[3].split('x'))
    if len(shape) != chip.dimensions or min(shape) < 1 or match[1] == '0':
        raise InputError(
            f'{name!r} is not a topology of {chip.name}, whose chips form a torus of '
            f'{chip.dimensions} dimensions. Known: {EXAMPLES}.'
        )
    return int(match[1] or 1), chip, shape
