"""The programs of a config, traced for shapes alone: nothing is computed, no array is made."""

import functools

import jax
import jax.numpy as jnp

from tarflow_jax import experiment, stopping
from tarflow_jax.flow import TarFlow
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.planning.topologies import Topology
from tarflow_jax.sampling.generate import draw_batch
from tarflow_jax.training import state as states
from tarflow_jax.training.objective import Noise
from tarflow_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tarflow_jax.training.step import jit_train_step

_SCHEDULE_KEYS = ('peak_learning_rate', 'final_learning_rate', 'warmup_steps')
_RUN_KEYS = ('num_samples', 'batch_size', 'seed', 'labels')  # of sampling, not of one batch


def build(config, topology: Topology):
    """The model of a config and its mesh of a topology's devices.

    Raises:
      InputError: the config makes no sense on these devices.
    """
    model = experiment.make_model(config, 'tpu' if topology.chip.is_tpu else 'cpu')
    experiment.how_to_sample(config, model)
    mesh = make_mesh(**config.mesh, devices=topology.devices)
    experiment.check_shares(config.train.batch_size, config.train.microbatches, mesh)
    return model, mesh


def abstract_state(config, model: TarFlow, mesh):
    """The optimizer of a config, and shapes and shardings of the state that it trains."""
    keys = config.optimizer
    schedule = learning_rate_schedule(
        peak=keys.peak_learning_rate,
        floor=keys.final_learning_rate,
        warmup_steps=keys.warmup_steps,
        total_steps=keys.warmup_steps + 1,  # how many there are changes no shape
    )
    rest = {key: value for key, value in keys.items() if key not in _SCHEDULE_KEYS}
    optimizer = make_optimizer(schedule, **rest)
    ema = experiment.has_ema(config)
    init = functools.partial(states.init_state, model=model, optimizer=optimizer, ema=ema)
    return optimizer, _place(jax.eval_shape(init, jax.random.key(0)), mesh)


def lower_train_step(config, model: TarFlow, mesh, batch_size: int) -> jax.stages.Lowered:
    """The train step, traced for `batch_size` images over all devices of the mesh."""
    optimizer, state = abstract_state(config, model, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    noise = Noise(config.noise.type, config.noise.std, num_levels=256)
    train_step = jit_train_step(config, model, optimizer, noise, mesh, shardings)
    over_batch = rules.batch_sharding(mesh)
    batch = {
        'image': _array((batch_size, *model.image_shape), jnp.uint8, over_batch),
        'label': _array((batch_size,), jnp.int32, over_batch),
    }
    signals = _array((mesh.size,), jnp.int32, stopping.sharding(mesh))
    with rules.on(mesh):
        return train_step.lower(state, batch, signals)


def lower_sampler(config, model: TarFlow, mesh, batch_size: int) -> jax.stages.Lowered:
    """The program that draws a batch of samples, traced for `batch_size` over all devices."""
    sampling = experiment.how_to_sample(config, model)
    options = {key: value for key, value in sampling.items() if key not in _RUN_KEYS}
    params = _place(jax.eval_shape(model.init_params, jax.random.key(0)), mesh)
    numbers = _array((batch_size,), jnp.int32, rules.batch_sharding(mesh))
    with rules.on(mesh):
        return draw_batch.lower(
            *(model, params, sampling['seed'], numbers, numbers, numbers, tuple(options.items()))
        )


def _place(shapes, mesh):
    """Shapes of parameters or of a state with the shardings that the rules give them."""
    return rules.abstract(shapes, rules.shardings(shapes, mesh))


def _array(shape, dtype, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
