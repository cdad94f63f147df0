"""Compares what the compiler makes of a config's programs with the same, operation by operation.

    python tests/compiled.py configs/digits.py

Prints the largest difference of each, as a share of the largest number of its array. Not to be run
with the options of XLA with which the tests compile fast: what users run is what counts.
"""

import importlib.util
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np

from tarflow_jax import experiment
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.planning.programs import abstract_state
from tarflow_jax.sampling.generate import draw
from tarflow_jax.training import state as states
from tarflow_jax.training.objective import Noise, negative_log_likelihood
from tarflow_jax.training.step import jit_train_step

BATCH = 2


def read_config(path):
    spec = importlib.util.spec_from_file_location('config', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def largest_difference(results, expected):
    pairs = zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True)
    return max(map(difference, *zip(*pairs, strict=True)))


def difference(result, expected):
    result, expected = (np.asarray(x, np.float64) for x in (result, expected))
    return float(np.abs(result - expected).max() / max(np.abs(expected).max(), 1e-30))


def compare(name, function):
    import time
    t=time.time()
    with jax.disable_jit():
        expected = jax.device_get(function())
    e=time.time()-t; t=time.time()
    print(name, largest_difference(jax.device_get(function()), expected), e, time.time()-t, flush=True)


def main(path):
    config = read_config(path)
    config.model.num_blocks, config.model.layers_per_block = 2, int(sys.argv[2])
    config.train.batch_size = BATCH
    mesh = make_mesh()
    model = experiment.make_model(config)
    optimizer, abstract = abstract_state(config, model, mesh)
    draws = np.random.default_rng(0)
    noise = Noise(config.noise.type, config.noise.std, num_levels=256)
    batch = {
        'image': draws.integers(256, size=(BATCH, *model.image_shape), dtype=np.uint8),
        'label': np.full(BATCH, -1, np.int32),
    }
    images = noise.add(jax.random.key(0), batch['image'])

    def draw_params(path, leaf):
        values = draws.normal(size=leaf.shape).astype(np.float32) / 50
        return leaf + values

    params = jax.tree_util.tree_map_with_path(draw_params, model.init_params(jax.random.key(0)))
    params = jax.device_put(params, rules.shardings(params, mesh))

    def step():
        with jax.disable_jit(False):
            state = states.init_state(
                jax.random.key(0), model, optimizer, ema=experiment.has_ema(config)
            )
        state = state.__class__(**{**vars(state), 'params': jax.tree.map(np.array, params)})
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        state = jax.device_put(state, shardings)
        train_step = jit_train_step(config, model, optimizer, noise, mesh, shardings)
        state, report = train_step(state, batch, np.zeros(1, np.int32))
        return state.opt_state, report['loss'], report['grad_norm']

    def log_density():
        return jax.jit(lambda *x: negative_log_likelihood(model, *x))(
            params, images, batch['label']
        )

    def samples():
        sampling = experiment.how_to_sample(config, model) | dict(num_samples=BATCH)
        (drawn,) = draw(model, params, mesh, **sampling)
        return drawn.images

    with rules.on(mesh):
        for name, function in ('step', step), ('log_density', log_density), ('samples', samples):
            compare(name, function)


if __name__ == '__main__':
    main(sys.argv[1])
