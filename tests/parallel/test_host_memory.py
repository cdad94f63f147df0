"""Freed memory is kept where JAX computes on the CPU, and nowhere else."""

import pytest

from tarflow_jax.parallel import host_memory


@pytest.mark.parametrize(
    ('platforms', 'devices', 'is_here'),
    [
        ('cpu', ['nvidia0'], True),
        ('cuda,cpu', [], False),
        ('', [], True),
        ('', ['nvidia0'], False),
        ('', ['nvidiactl'], True),
        ('', ['accel0'], False),
    ],
)
def test_where_jax_computes(monkeypatch, tmp_path, platforms, devices, is_here):
    patterns = [pattern.replace('/dev', str(tmp_path)) for pattern in host_memory._ACCELERATORS]
    monkeypatch.setattr(host_memory, '_ACCELERATORS', patterns)
    monkeypatch.setenv('JAX_PLATFORMS', platforms)
    for name in devices:
        (tmp_path / name).touch()
    assert host_memory.runs_on_cpu() is is_here
