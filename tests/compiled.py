"""What the compiler makes of a config's programs: their results for a few images.

    python tests/compiled.py configs/digits.py results.npz

Two blocks of the config, of a layer each: arrays have their shapes, and compile in seconds.
"""

import dataclasses
import importlib.util
import sys

import jax
import numpy as np
import optax

from tarflow_jax.build import build
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.parallel import rules
from tarflow_jax.sampling.batches import sample_batches
from tarflow_jax.training.objective import negative_log_likelihood
from tarflow_jax.training.program import make_program

BATCH = 2


def make_experiment(path):
    spec = importlib.util.spec_from_file_location('config', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.model.num_blocks, config.model.layers_per_block = 2, 1
    config.train.batch_size = BATCH
    return build(config, jax.devices()[:1])


def make_noise(config):
    return Noise(config.noise.type, config.noise.std, num_levels=256)


def make_batch(model):
    draws = np.random.default_rng(0)
    levels = draws.integers(256, size=(BATCH, *model.image_shape), dtype=np.uint8)
    return {'image': levels, 'label': np.full(BATCH, -1, np.int32)}


def make_params(model):
    """Parameters far from the identity, of the sizes that trained ones have."""
    draws = np.random.default_rng(1)

    def draw(path, leaf):
        values = draws.normal(size=leaf.shape).astype(np.float32) / 20
        if path[-2].key == 'proj_out':
            return values / 10
        return 1 + values if path[-1].key == 'scale' else values

    shapes = model.param_shapes()
    return jax.tree_util.tree_map_with_path(draw, shapes)


def named(prefix, tree) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {prefix + jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def results(path) -> dict[str, np.ndarray]:
    """The arrays that a train step, the log-density and the sampler give, by name."""
    experiment = make_experiment(path)
    config, model, mesh = experiment.config, experiment.model, experiment.mesh
    noise, batch, params = make_noise(config), make_batch(model), make_params(model)
    program = make_program(experiment, noise, config.optimizer.warmup_steps + 1)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), program.state)
    state = dataclasses.replace(state, params=params)
    images = noise.add(jax.random.key(0), batch['image'])
    log_density = jax.jit(lambda *x: negative_log_likelihood(model, *x))
    sampling = dict(experiment.sampling) | {'num_samples': BATCH}
    with rules.activation_sharding(mesh):
        params = jax.device_put(params, rules.shardings(params, mesh))
        nats, latents = log_density(params, images, batch['label'])
        (samples,) = sample_batches(model, params, mesh, **sampling)
        shardings = jax.tree.map(lambda x: x.sharding, program.state)
        state = jax.device_put(state, shardings)
        state, report = program.step(state, batch, np.zeros(1, np.int32))
    arrays = {'nats': nats, 'latents': latents, 'samples': samples.images, 'loss': report['loss']}
    # Of the first step: the gradient, but for a factor.
    arrays |= named('mean', optax.tree.get(state.opt_state, 'mu'))
    return jax.device_get(arrays)


if __name__ == '__main__':
    np.savez(sys.argv[2], **results(sys.argv[1]))
