"""The compiler's programs, as users run them, against float64 with few of its optimisations."""

import os
import subprocess
import sys

import float64
import numpy as np
from runs import ROOT

CONFIG = ROOT / 'configs' / 'photos.py'


def test_compiled_programs_compute_what_float64_does(tmp_path):
    options = ('XLA_FLAGS', 'JAX_DISABLE_MOST_OPTIMIZATIONS', 'JAX_COMPILATION_CACHE_DIR')
    environment = {name: value for name, value in os.environ.items() if name not in options}
    compiled = subprocess.Popen(
        [sys.executable, ROOT / 'tests' / 'compiled.py', CONFIG, tmp_path / 'npz'],
        cwd=ROOT,
        env=environment | {'PYTHONPATH': str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    expected = float64.results(CONFIG)
    _, err = compiled.communicate(timeout=240)
    assert compiled.returncode == 0, err
    with np.load(tmp_path / 'npz.npz') as arrays:
        assert set(arrays) == set(expected)
        for name, array in arrays.items():
            assert expected[name].dtype == np.float64
            largest = np.abs(expected[name]).max()
            np.testing.assert_allclose(
                array, expected[name], rtol=0, atol=1e-4 * largest + 1e-9, err_msg=name
            )
