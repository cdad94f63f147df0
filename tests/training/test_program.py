"""What training runs, beside the step itself."""

import functools

import jax
import numpy as np

from tarflow_jax.build import build
from tarflow_jax.configfile import ConfigFile
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.training.program import make_program


def test_new_parameters_are_the_same_at_the_level_that_compiles_sooner(monkeypatch):
    config = ConfigFile().parse('digits')
    config.model.update(width=8, head_dim=4, num_blocks=2, layers_per_block=1)
    experiment = build(config, jax.devices()[:1])

    def new_params():
        program = make_program(experiment, Noise('gaussian', 0.1, 17), total_steps=100)
        return program.init(jax.random.key(0)).params

    at_the_level_of_tests = new_params()
    monkeypatch.delenv('XLA_FLAGS')  # nobody has chosen a level now
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)  # roundings
    jax.tree.map(same, new_params(), at_the_level_of_tests)
