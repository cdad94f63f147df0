"""The state from which a run goes on."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax import experiment, loading
from tarflow_jax.parallel import distributed, memory, rules
from tarflow_jax.training import health
from tarflow_jax.training import state as states
from tarflow_jax.training.checkpoint import Checkpoints


def first_state(
    config,
    model,
    optimizer,
    mesh,
    checkpoints: Checkpoints,
    checkpoint=None,
    older_than: float = math.inf,
) -> states.TrainState:
    """The newest sound checkpoint, else a new state, laid over the mesh.

    Args:
      config: of the run.
      model: the flow.
      optimizer: what trains it.
      mesh: the devices.
      checkpoints: of the workdir; damaged ones that are newer are set aside.
      checkpoint: what a new state takes its parameters from, see `tarflow_jax.load`.
      older_than: the step before which to look; newer checkpoints are then left where they are.
    """
    init = functools.partial(
        states.init_state, model=model, optimizer=optimizer, ema=experiment.has_ema(config)
    )
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(init, key)
    shardings = rules.shardings(shapes, mesh)

    abstract = rules.abstract(shapes, shardings)
    memory.check_fits(
        {
            'parameters': abstract.params,
            'gradients': abstract.params,
            'optimizer': abstract.opt_state,
            'moving average': abstract.ema_params,
        }
    )
    restored = checkpoints.restore_newest(
        abstract.to_items(),
        optional=(states.HEALTH,),
        older_than=older_than,
    )
    if restored:
        step, items = restored
        if older_than == math.inf:
            checkpoints.set_aside(newer_than=step)
        return states.TrainState.from_items(_completed(items, mesh))
    state = jax.jit(init, out_shardings=shardings)(key)
    if not checkpoint:
        return state
    _, params, _ = loading.load_for(config, checkpoint, mesh)
    ema_params = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema_params=ema_params)


def _completed(items, mesh):
    """The items of a checkpoint with what was added since it was saved."""
    if states.HEALTH in items:
        return items
    # A run that gave up has saved how many steps it had skipped, and would give up again.
    counters = {**items['counters'], 'skipped_in_a_row': replicated(mesh, 0)}
    added = {**_new_health(mesh), 'restarts': replicated(mesh, 0)}
    return {**items, 'counters': counters, states.HEALTH: added}


def _new_health(mesh):
    return {name: replicated(mesh, value) for name, value in health.init().items()}


def replicated(mesh, value):
    """A scalar, float32 or int32, on every device."""
    array = np.asarray(value, np.int32 if isinstance(value, int) else np.float32)
    return distributed.put(array, rules.replicated(mesh))


def forget_losses(state: states.TrainState, mesh) -> states.TrainState:
    """A state whose coming losses do not compare with those that were, as of other data."""
    return dataclasses.replace(state, health=_new_health(mesh))


def restarted(state: states.TrainState, restarts: int, mesh) -> states.TrainState:
    """A state from which a run goes on that has gone back to it."""
    return dataclasses.replace(
        state, restarts=replicated(mesh, restarts), skipped_in_a_row=replicated(mesh, 0)
    )
