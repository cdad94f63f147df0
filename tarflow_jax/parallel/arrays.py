"""Arrays on their way between the hosts and the devices of all processes."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding

from tarflow_jax.parallel import rules

_WORDS_AT_ONCE = 2**20


def fetch(tree):
    """Arrays as NumPy, complete, in every process, however they are sharded over the devices."""

    def fetch_array(x):
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return jax.device_get(x)

    return jax.tree.map(fetch_array, tree)


def fetch_rows(tree):
    """The rows of batches that the devices of this process hold, as NumPy, as `local_rows` orders.

    Args:
      tree: arrays [B, ...] sharded as by `put_rows`; of one process, all rows.
    """

    def fetch_array(x):
        held = {shard.index[0].indices(len(x))[0]: shard for shard in x.addressable_shards}
        return np.concatenate([np.asarray(held[start].data) for start in sorted(held)])

    return jax.tree.map(fetch_array, tree)


def gather_rows(array: np.ndarray) -> np.ndarray:
    """The rows [n, ...] of every process, one process after the other; n must be the same in all.

    For numbers of 32 bits or fewer.
    """
    return multihost_utils.process_allgather(array, tiled=True)


def sum_float64(tree):
    """The sums over processes of float64 NumPy arrays, in float64, the same in every process.

    JAX would round them to float32: they travel as pairs of 32-bit words.
    """
    if jax.process_count() == 1:
        return tree

    def sum_array(x):
        words = np.ascontiguousarray(x, np.float64).reshape(-1).view(np.uint32)
        # In parts: every device holds those of all processes at once.
        parts = np.split(words, range(_WORDS_AT_ONCE, len(words), _WORDS_AT_ONCE))
        sums = []
        for part in parts:
            gathered = np.ascontiguousarray(multihost_utils.process_allgather(part))
            sums.append(gathered.view(np.float64).sum(axis=0))
        return np.concatenate(sums).reshape(x.shape)

    return jax.tree.map(sum_array, tree)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a batch that the devices of this process hold, ascending."""
    sharding = rules.batch_sharding(mesh)
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in held]))


def put_rows(tree, mesh: Mesh, batch_size: int):
    """Shards a batch over the mesh; this process supplies some of its rows.

    Args:
      tree: NumPy arrays [n, ...], the rows that `local_rows` names.
      mesh: the devices of all processes.
      batch_size: rows of the batch over all processes.

    Returns:
      Arrays [batch_size, ...], split over the mesh.
    """
    sharding = rules.batch_sharding(mesh)

    def put_array(x):
        shape = (batch_size, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(put_array, tree)


def put(tree, shardings):
    """Puts arrays, which every process has complete on its host, onto the devices."""

    def put_array(x, sharding: Sharding):
        return jax.make_array_from_process_local_data(sharding, x, x.shape)

    return jax.tree.map(put_array, tree, shardings)


def broadcast_array(array: np.ndarray) -> np.ndarray:
    """The array of process 0 in every process; others give one of its shape and 32-bit type."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array))
