"""Compiled programs are kept, unless the user says otherwise."""

import os
import subprocess
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tarflow_jax import compile_cache

PROGRAM = """
import jax
from tarflow_jax.compile_cache import keep_compiled_programs
keep_compiled_programs()
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
print(float(jax.jit(lambda x: x * 2 + 1)(3.0)))
"""


@pytest.fixture
def run(tmp_path):
    def run(**environment):
        clean = {name: value for name, value in os.environ.items() if 'CACHE' not in name}
        environment = clean | {'TARFLOW_CACHE': str(tmp_path / 'cache')} | environment
        result = subprocess.run(
            [sys.executable, '-c', PROGRAM], env=environment, capture_output=True, text=True
        )
        assert (result.stdout, result.stderr, result.returncode) == ('7.0\n', '', 0)
        return sorted(tmp_path.glob('cache/compiled/*/*-cache'))

    return run


def test_they_are_kept_and_found(run):
    kept = run()
    assert kept
    before = [file.stat().st_mtime_ns for file in kept]
    assert run() == kept
    assert [file.stat().st_mtime_ns for file in kept] == before


def test_the_user_names_another_folder_or_none(run, tmp_path):
    assert run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'mine')) == []
    assert list((tmp_path / 'mine').iterdir())
    assert run(JAX_ENABLE_COMPILATION_CACHE='false') == []


def test_a_damaged_one_is_as_none(run):
    for file in run():
        file.write_bytes(b'damaged')
    run()


def test_a_folder_that_cannot_be_made_is_as_none(run, tmp_path):
    (tmp_path / 'cache').write_text('')
    run()


@pytest.fixture
def unchanged_cache():
    """JAX's cache is afterwards what it was."""
    names = (
        'jax_compilation_cache_dir',
        'jax_compilation_cache_max_size',
        'jax_persistent_cache_min_compile_time_secs',
    )
    before = {name: jax.config.values[name] for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures('unchanged_cache')
def test_processes_on_accelerators_keep_them_where_all_can_read(tmp_path, monkeypatch):
    monkeypatch.setenv('TARFLOW_CACHE', str(tmp_path / 'cache'))
    workdir = tmp_path / 'workdir'

    def start(own_folder='', runs_on_cpu=False):
        jax.config.update('jax_compilation_cache_dir', own_folder or None)
        monkeypatch.setattr(compile_cache, 'runs_on_cpu', lambda: runs_on_cpu)
        compile_cache.keep_compiled_programs()
        compile_cache.share_compiled_programs(workdir)
        return jax.config.values['jax_compilation_cache_dir']

    assert start(runs_on_cpu=True).startswith(f'{tmp_path}/cache/compiled/')
    assert start(own_folder='mine') == 'mine'
    assert not workdir.exists()
    assert start() == f'{workdir}/compiled'
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    assert jax.jit(lambda x: x * 3 + 2)(3.0) == 11
    assert [*workdir.glob('compiled/*-cache')]
