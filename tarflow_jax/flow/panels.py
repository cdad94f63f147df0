"""Kernels of linear maps in panels of columns, for products of few rows on a CPU.

A product of few rows reads its kernel once, and from memory if the cache has no room for it. XLA's
CPU backend computes some columns at a time, for which it reads a cache line out of every row of the
kernel, and a CPU does not prefetch lines that lie so far apart. In panels of as many columns, the
kernel is read sequentially.

A kernel is a matrix [I, F] here, whatever its axes; its panels are [F / 16, I, 16].
"""

import jax
import jax.numpy as jnp

from tarflow_jax.flow.attention import PRECISION
from tarflow_jax.parallel.cores import describe_cpu
from tarflow_jax.parallel.mesh import is_of_cpu, num_batch_shards, rows_of_device

COLUMNS = 16  # of a panel: those that XLA computes at a time with AVX2
MAX_ROWS = 32  # of a product; more rows make good use of a tile of the kernel
MIN_BYTES = 2**22  # of the kernels; smaller ones stay in the cache


def pay_off(layers, num_rows: int) -> bool:
    """Whether products of few rows with the kernels of some layers are faster in panels.

    They are with AVX2. With AVX-512, XLA computes other numbers of columns at a time; that was not
    tried.

    Args:
      layers: parameters, with kernels in dicts as `Linear` has them.
      num_rows: of each product, over all devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    is_split = not mesh.empty and num_batch_shards(mesh) < mesh.size  # along the tensor axis
    if num_rows == 1 or is_split or not (is_of_cpu(mesh) and _has_avx2_only()):
        return False
    linears = list(_linears(layers))
    kernels = [linear['kernel'] for linear in linears]
    return (
        rows_of_device(num_rows, mesh) <= MAX_ROWS
        and sum(kernel.nbytes for kernel in kernels) >= MIN_BYTES
        and all(kernel.dtype == jnp.float32 for kernel in kernels)
        and all(linear['bias'].size % COLUMNS == 0 for linear in linears)
    )


def in_panels(params):
    """The same parameters, with `panels` in place of every `kernel`."""

    def convert(linear):
        kernel, bias = linear['kernel'], linear['bias']
        columns = kernel.reshape(-1, bias.size // COLUMNS, COLUMNS)
        return {'panels': columns.swapaxes(0, 1), 'bias': bias}

    return jax.tree.map(lambda x: convert(x) if _is_linear(x) else x, params, is_leaf=_is_linear)


def multiply(rows, panels):
    """The product of rows [R, I] with a kernel in panels, [R, F]."""
    rows_of_panels = jnp.broadcast_to(rows, (len(panels), *rows.shape))
    products = jnp.matmul(rows_of_panels, panels, precision=PRECISION)
    return products.swapaxes(0, 1).reshape(len(rows), -1)


def _linears(params):
    """The parameters of each `Linear` among those of other modules."""
    return filter(_is_linear, jax.tree.leaves(params, is_leaf=_is_linear))


def _is_linear(params) -> bool:
    return isinstance(params, dict) and 'kernel' in params


def _has_avx2_only() -> bool:
    words = set(' '.join(describe_cpu()).split())
    return 'avx2' in words and 'avx512f' not in words
