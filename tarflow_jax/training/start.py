"""The state from which a run goes on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from tarflow_jax import experiment, loading
from tarflow_jax.parallel import rules
from tarflow_jax.training import state as states
from tarflow_jax.training.checkpoint import Checkpoints


def first_state(
    config, model, optimizer, mesh, checkpoints: Checkpoints, checkpoint=None
) -> states.TrainState:
    """The newest sound checkpoint, else a new state, laid over the mesh.

    Args:
      config: of the run.
      model: the flow.
      optimizer: what trains it.
      mesh: the devices.
      checkpoints: of the workdir; damaged ones that are newer are set aside.
      checkpoint: what a new state takes its parameters from, see `tarflow_jax.load`.
    """
    init = functools.partial(
        states.init_state, model=model, optimizer=optimizer, ema=experiment.has_ema(config)
    )
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(init, key)
    shardings = rules.shardings(shapes, mesh)

    restored = checkpoints.restore_newest(rules.abstract(shapes, shardings).to_items())
    if restored:
        step, items = restored
        checkpoints.set_aside(newer_than=step)
        return states.TrainState.from_items(items)
    state = jax.jit(init, out_shardings=shardings)(key)
    if not checkpoint:
        return state
    _, params, _ = loading.load_for(config, checkpoint, mesh)
    ema_params = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema_params=ema_params)
