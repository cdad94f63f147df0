"""What this machine's CPU can do, measured in a second."""

import os
import time

import jax
import jax.numpy as jnp

from tarflow_jax.planning.chips import Chip

_SIZE = 1024  # of the square factors
_COPIED = 2**25  # float32 numbers, more than caches hold


def measure_cpu() -> Chip:
    """This machine's CPU as it is now, shared evenly by the devices JAX makes of it."""
    shares = len(jax.devices('cpu'))
    with jax.default_device(jax.devices('cpu')[0]):
        flops = 2 * _SIZE**3 / _best_seconds(jnp.matmul, (_SIZE, _SIZE), 2)
        bandwidth = 2 * 4 * _COPIED / _best_seconds(jnp.negative, (_COPIED,), 1)
    return Chip(
        name='cpu',
        peak_flops=flops / shares,
        hbm_bytes=os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / shares,
        hbm_bandwidth=bandwidth / shares,
        link_bandwidth=bandwidth / shares,
        dcn_bandwidth=bandwidth / shares,
        dimensions=1,
        wraps_at=1,
        source='measured: float32 product of 1024x1024 matrices, copy of 128 MiB',
        is_measured=True,
    )


def _best_seconds(function, shape, num_arguments, tries=4) -> float:
    arguments = [jnp.ones(shape, jnp.float32) for _ in range(num_arguments)]
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        compiled(*arguments).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
