"""Compiled programs are kept, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest

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
