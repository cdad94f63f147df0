"""Models that do not fit are refused by their size."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tarflow_jax.errors import InputError
from tarflow_jax.parallel import memory
from tarflow_jax.parallel.mesh import make_mesh


def test_a_model_that_cannot_fit_is_refused_before_anything_is_made(runs, tmp_path):
    line = runs.refused(tmp_path, '--config.model.width=65536')
    assert 'the model does not fit into memory: parameters ' in line
    for words in 'gradients', 'optimizer', 'moving average', 'model.width', 'mesh.fsdp':
        assert words in line


def test_shards_count_for_their_device():
    mesh = make_mesh(data=1, fsdp=8)

    def laid_out(*axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return {'x': jax.ShapeDtypeStruct((2**20, 2**6), jnp.float32, sharding=sharding)}

    assert memory.bytes_per_device(laid_out()) == 2**28
    assert memory.bytes_per_device(laid_out('fsdp')) == 2**25
    memory.check_fits({'one': laid_out('fsdp'), 'none': None})
    huge = jax.ShapeDtypeStruct((2**30, 2**6), jnp.float32, sharding=laid_out()['x'].sharding)
    with pytest.raises(InputError, match=r'one 268\.4 MB, two 274\.9 GB'):
        memory.check_fits({'one': laid_out(), 'two': huge})


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    (tmp_path / 'max').write_text('max')
    (tmp_path / 'limit').write_text(str(2**20))
    array = jax.device_put(jnp.zeros(2**20), jax.devices()[0])
    monkeypatch.setattr(memory, '_CGROUP_LIMITS', (tmp_path / 'max', tmp_path / 'none'))
    memory.check_fits({'array': array})
    monkeypatch.setattr(memory, '_CGROUP_LIMITS', (tmp_path / 'max', tmp_path / 'limit'))
    with pytest.raises(InputError, match=r'array 4\.2 MB, together 4\.2 MB of the .* MB that'):
        memory.check_fits({'array': array})
