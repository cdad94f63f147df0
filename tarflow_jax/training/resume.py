"""The state from which a run resumes."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.parallel import arrays, memory, rules
from tarflow_jax.training import health
from tarflow_jax.training.checkpoint import Checkpoints
from tarflow_jax.training.program import TrainProgram
from tarflow_jax.training.state import TrainState


def first_state(
    program: TrainProgram,
    mesh,
    checkpoints: Checkpoints,
    *,
    seed: int,
    load_params: Callable[[], Any] | None = None,
    older_than: float = math.inf,
) -> TrainState:
    """Returns the newest sound checkpoint, else a new state, sharded over the mesh.

    Args:
      program: the program that trains the state.
      mesh: the devices.
      checkpoints: the checkpoints of the workdir; newer ones that are damaged are set aside.
      seed: the seed of a new state's parameters.
      load_params: a function that returns a new state's parameters; random without it.
      older_than: the step before which to look; newer checkpoints are then left where they are.
    """
    abstract = program.state
    memory.check_fits(
        {
            'parameters': abstract.params,
            'gradients': abstract.params,
            'optimizer': abstract.opt_state,
            'moving average': abstract.ema_params,
        }
    )
    if restored := checkpoints.restore_newest(abstract.to_items(), older_than=older_than):
        step, items = restored
        if older_than == math.inf:
            checkpoints.set_aside(newer_than=step)
        return TrainState.from_items(items)
    state = program.init(jax.random.key(seed))
    if load_params is None:
        return state
    params = load_params()
    ema_params = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema_params=ema_params)


def _replicated(mesh, value):
    """A scalar, float32 or int32, on every device."""
    array = np.asarray(value, np.int32 if isinstance(value, int) else np.float32)
    return arrays.put(array, rules.replicated(mesh))


def reset_health(state: TrainState, mesh) -> TrainState:
    """Returns a state whose later losses are not compared with earlier ones, of other data."""
    new = {name: _replicated(mesh, value) for name, value in health.init().items()}
    return dataclasses.replace(state, health=new)


def with_restart_count(state: TrainState, restarts: int, mesh) -> TrainState:
    """Returns the state of a checkpoint to which a run has gone back for the n-th time."""
    return dataclasses.replace(
        state, restarts=_replicated(mesh, restarts), skipped_in_a_row=_replicated(mesh, 0)
    )
