"""What the compiler makes of the programs as users run it, and as tests do, without optimizing."""

import os
import subprocess
import sys

import compiled
import numpy as np
import pytest
from runs import ROOT


@pytest.mark.parametrize('config', ['digits', 'photos'])
def test_optimizing_changes_no_result(config, tmp_path):
    options = ('XLA_FLAGS', 'JAX_DISABLE_MOST_OPTIMIZATIONS', 'JAX_COMPILATION_CACHE_DIR')
    environment = {name: value for name, value in os.environ.items() if name not in options}
    optimizing = subprocess.Popen(
        [sys.executable, ROOT / 'tests' / 'compiled.py', f'configs/{config}.py', tmp_path / 'npz'],
        cwd=ROOT,
        env=environment | {'PYTHONPATH': str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    expected = compiled.results(ROOT / 'configs' / f'{config}.py')
    _, err = optimizing.communicate(timeout=240)
    assert optimizing.returncode == 0, err
    with np.load(tmp_path / 'npz.npz') as arrays:
        assert set(arrays) == set(expected)
        for name, array in arrays.items():
            assert np.isfinite(array).all(), name
            largest = np.abs(expected[name]).max()
            np.testing.assert_allclose(
                array, expected[name], rtol=0, atol=1e-3 * largest + 1e-12, err_msg=name
            )
