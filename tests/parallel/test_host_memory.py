"""Freed memory is kept where JAX computes on the CPU, and nowhere else."""

import os
import subprocess
import sys

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


COMPILES = """
import ctypes
from tarflow_jax.parallel import host_memory

def resident_mib():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096 / 2**20

host_memory.MIN_COMPILE_SECONDS = 0
host_memory.keep_freed_memory()
import jax
jax.devices()
libc = ctypes.CDLL('libc.so.6')
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(2**17) for _ in range(2048)]
for block in blocks:
    ctypes.memset(block, 1, 2**17)
for block in blocks[:-1]:  # the last one keeps those before it from being given back at once
    libc.free(block)
kept = resident_mib()
jax.jit(lambda x: x + 1).lower(1.0).compile()
print(kept, resident_mib())
"""


def test_freed_memory_is_kept_until_something_is_compiled():
    result = subprocess.run(
        [sys.executable, '-c', COMPILES],
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, after = map(float, result.stdout.split())
    assert kept > 300
    assert kept - after > 150
