"""What a device can do: TPUs and GPUs by their data sheets, this machine's CPU as measured.

Of each TPU the source is Google's page, https://docs.cloud.google.com/tpu/docs/ v4, v5e, v5p, v6e
and tpu7x, and for links and rings https://jax-ml.github.io/scaling-book/tpus. `hbm_bytes` is what
the compiler lets a program use, as libtpu 0.0.42 says it when a program is too large. GPUs are in
`gpus`.
"""

import dataclasses
import timeit
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from tarflow_jax.parallel.memory import host_bytes

_SIZE = 1024  # of the square factors of the measured product
_COPIED = 2**25  # float32 numbers of the measured copy, more than caches hold

# Passes of a TPU's matrix unit, which multiplies bfloat16, for a product of float32 factors, by
# the product's precision: https://docs.jax.dev/en/latest/jax.lax.html#jax.lax.Precision.
TPU_PASSES = {'default': 1, 'high': 3, 'highest': 6}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a topology as JAX sees it: a chip, or a core of a tpu7x.

    FLOP/s are of bfloat16, of a CPU of float32; bandwidths are in bytes/s, those of a link to a
    neighbour one way, those of the network between slices (dcn) of a device. `hbm_bytes` is the
    memory that a program may use. A dimension of the torus whose size is a multiple of `wraps_at`
    is a ring. `config` is libtpu's name of the way the cores of a chip are used. A product of
    float32 factors takes `float32_passes` times as long as `peak_flops` says, by its precision, and
    a kernel at least `kernel_seconds`. `options` are the compiler's.
    """

    name: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    dimensions: int
    wraps_at: int
    devices_per_chip: int = 1
    config: str | None = None
    platform: Literal['cpu', 'gpu', 'tpu'] = 'tpu'
    float32_passes: Mapping[str, float] = dataclasses.field(default_factory=lambda: TPU_PASSES)
    kernel_seconds: float = 0.0
    options: Mapping[str, bool] = dataclasses.field(default_factory=dict)

    @property
    def is_tpu(self) -> bool:
        return self.platform == 'tpu'


# name, FLOP/s, memory, its bytes/s, bytes/s of a link and between slices, dimensions, rings
_V4 = Chip('v4', 275e12, 30.75 * 2**30, 1.2e12, 45e9, 6.25e9, 3, 4, config='megacore')
_V5E = Chip('v5e', 197e12, 15.75 * 2**30, 819e9, 50e9, 3.125e9, 2, 16)
_V5P = Chip('v5p', 459e12, 95.74 * 2**30, 2.765e12, 100e9, 6.25e9, 3, 4)
_V6E = Chip('v6e', 918e12, 31.25 * 2**30, 1.638e12, 100e9, 12.5e9, 2, 16)
# A chip of two devices, which share its links: half of 2307 TFLOP/s, 7.37 TB/s and 100 GB/s.
_TPU7X = Chip('tpu7x', 1153.5e12, 94.75 * 2**30, 3.685e12, 50e9, 6.25e9, 3, 4, 2)
CHIPS = {chip.name: chip for chip in (_V4, _V5E, _V5P, _V6E, _TPU7X)}


def measure_cpu() -> Chip:
    """This machine's CPU as it is now, in a second, shared evenly by JAX's devices."""
    shares = len(jax.devices('cpu'))
    with jax.default_device(jax.devices('cpu')[0]):
        factor, array = jnp.ones((_SIZE, _SIZE)), jnp.ones(_COPIED)
        flops = 2 * _SIZE**3 / _best_seconds(jnp.matmul, factor, factor)
        bandwidth = 2 * 4 * _COPIED / _best_seconds(jnp.negative, array)
    share = bandwidth / shares
    return Chip(
        *('cpu', flops / shares, host_bytes() / shares, share, share, share, 1, 1),
        platform='cpu',
        float32_passes=dict.fromkeys(TPU_PASSES, 1),
    )


def _best_seconds(function, *arguments) -> float:
    compiled = jax.jit(function).lower(*arguments).compile()
    return min(timeit.repeat(lambda: compiled(*arguments).block_until_ready(), number=1, repeat=4))
