"""Rows and arrays lie where they belong, and come back whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax.parallel import arrays, rules
from tarflow_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize('sizes', [dict(), dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=8)])
def test_one_process_holds_every_row(sizes):
    mesh = make_mesh(**sizes)
    rows = arrays.local_rows(mesh, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    batch = {'x': np.arange(48.0, dtype=np.float32).reshape(16, 3)}
    placed = arrays.put_rows(batch, mesh, 16)
    assert placed['x'].sharding == rules.batch_sharding(mesh)
    np.testing.assert_array_equal(arrays.fetch(placed)['x'], batch['x'])


def test_arrays_are_put_where_they_belong_and_fetched_again():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    tree = {'x': np.ones((2, 3), np.float32)}
    placed = arrays.put(tree, {'x': device})
    assert placed['x'].devices() == {jax.devices()[1]}
    assert isinstance(arrays.fetch(placed)['x'], np.ndarray)
    assert arrays.fetch(jnp.int32(3)) == 3
