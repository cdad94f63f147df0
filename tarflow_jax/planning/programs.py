"""The programs of an experiment, traced for shapes alone: nothing is computed, no array is made."""

import jax
import jax.numpy as jnp

from tarflow_jax import stopping
from tarflow_jax.build import Experiment
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.parallel import rules
from tarflow_jax.sampling.batches import sample_batch
from tarflow_jax.training import program
from tarflow_jax.training.program import TrainProgram

_RUN_KEYS = ('num_samples', 'batch_size', 'seed', 'labels')  # of sampling, not of one batch


def make_program(experiment: Experiment) -> TrainProgram:
    """The program that trains an experiment, without its data set."""
    config = experiment.config
    noise = Noise(config.noise.type, config.noise.std, num_levels=256)
    # How many steps there are changes no shape.
    return program.make_program(experiment, noise, config.optimizer.warmup_steps + 1)


def lower_train_step(experiment: Experiment, batch_size: int) -> jax.stages.Lowered:
    """The train step, traced for `batch_size` images over all devices of the mesh."""
    model, mesh = experiment.model, experiment.mesh
    training = make_program(experiment)
    over_batch = rules.batch_sharding(mesh)
    batch = {
        'image': _array((batch_size, *model.image_shape), jnp.uint8, over_batch),
        'label': _array((batch_size,), jnp.int32, over_batch),
    }
    signals = _array((mesh.size,), jnp.int32, stopping.sharding(mesh))
    with rules.activation_sharding(mesh):
        return training.step.lower(training.state, batch, signals)


def lower_sampler(experiment: Experiment, batch_size: int) -> jax.stages.Lowered:
    """The program that draws a batch of samples, traced for `batch_size` over all devices."""
    model, mesh, sampling = experiment.model, experiment.mesh, experiment.sampling
    options = {key: value for key, value in sampling.items() if key not in _RUN_KEYS}
    shapes = model.param_shapes()
    params = rules.with_shardings(shapes, rules.shardings(shapes, mesh))
    numbers = _array((batch_size,), jnp.int32, rules.batch_sharding(mesh))
    with rules.activation_sharding(mesh):
        return sample_batch.lower(
            *(model, params, None, sampling['seed'], numbers, numbers, numbers),
            tuple(options.items()),
        )


def _array(shape, dtype, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
