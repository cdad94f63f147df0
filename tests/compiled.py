"""What the compiler makes of a config's programs: their results for a few images.

    python tests/compiled.py configs/digits.py results.npz

Two blocks of the config, of a layer each: arrays have their shapes, and compile in seconds.
"""

import dataclasses
import importlib.util
import sys

import jax
import numpy as np

from tarflow_jax.build import build
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.parallel import rules
from tarflow_jax.sampling.batches import sample_batches
from tarflow_jax.training.objective import negative_log_likelihood
from tarflow_jax.training.program import make_program

BATCH = 2


def read_config(path):
    spec = importlib.util.spec_from_file_location('config', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def results(path) -> dict[str, np.ndarray]:
    """The arrays that a train step, the log-density and the sampler give, by name."""
    config = read_config(path)
    config.model.num_blocks, config.model.layers_per_block = 2, 1
    experiment = build(config, jax.devices()[:1])
    model, mesh = experiment.model, experiment.mesh
    draws = np.random.default_rng(0)
    noise = Noise(config.noise.type, config.noise.std, num_levels=256)
    program = make_program(experiment, noise, config.optimizer.warmup_steps + 1)
    abstract = program.state
    batch = {
        'image': draws.integers(256, size=(BATCH, *model.image_shape), dtype=np.uint8),
        'label': np.full(BATCH, -1, np.int32),
    }
    images = noise.add(jax.random.key(0), batch['image'])

    def draw_params(path, leaf):
        values = draws.normal(size=leaf.shape).astype(np.float32) / 20
        if path[-2].key == 'proj_out':
            return values / 10
        return 1 + values if path[-1].key in ('scale', 'prior_var') else values

    params = jax.tree_util.tree_map_with_path(draw_params, abstract.params)
    params = jax.device_put(params, rules.shardings(params, mesh))

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    state = dataclasses.replace(state, params=jax.device_get(params))
    log_density = jax.jit(lambda *x: negative_log_likelihood(model, *x))
    sampling = dict(experiment.sampling) | {'num_samples': BATCH}
    with rules.on(mesh):
        nats, latents = log_density(params, images, batch['label'])
        (samples,) = sample_batches(model, params, mesh, **sampling)
        state, report = program.step(jax.device_put(state, shardings), batch, np.zeros(1, np.int32))
    arrays = {
        'nats': nats,
        'latents': latents,
        'samples': samples.images,
        'loss': report['loss'],
        'grad_norm': report['grad_norm'],
    }
    # Moments of the first step are the gradient and its square, but for a factor.
    moments, _ = jax.tree_util.tree_flatten_with_path(state.opt_state)
    arrays |= {jax.tree_util.keystr(path): moment for path, moment in moments}
    return jax.device_get(arrays)


if __name__ == '__main__':
    np.savez(sys.argv[2], **results(sys.argv[1]))
