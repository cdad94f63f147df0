"""The state of a training run."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.training import health

COUNTERS = ('step', 'window', 'skipped', 'skipped_in_a_row')


@flax.struct.dataclass
class TrainState:
    """Everything that a run needs to resume as if it had not stopped.

    Attributes:
      step: steps taken, skipped ones included; the noise and label dropout follow from it, and with
        `restarts` the data.
      params: the model's parameters.
      ema_params: their moving average, or None.
      opt_state: the optimizer's.
      window: sums over the steps since the last line of metrics was due.
      skipped: steps whose loss or gradient was not finite.
      skipped_in_a_row: those since the last good one.
      health: the health of the losses, see `training/health.py`.
      restarts: how often the run has gone back to a checkpoint.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    window: dict[str, jax.Array]
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    health: dict[str, jax.Array]
    restarts: jax.Array

    @property
    def sampling_params(self):
        """What to sample and score with."""
        return self.params if self.ema_params is None else self.ema_params

    def to_items(self) -> dict[str, Any]:
        """The state as the named trees that a checkpoint keeps apart."""
        counters = {name: getattr(self, name) for name in COUNTERS}
        items = {
            'params': self.params,
            'opt_state': self.opt_state,
            'counters': counters,
            'health': {**self.health, 'restarts': self.restarts},
        }
        return items if self.ema_params is None else {**items, 'ema_params': self.ema_params}

    @classmethod
    def from_items(cls, items) -> 'TrainState':
        """Inverts `to_items`."""
        health = dict(items['health'])
        return cls(
            params=items['params'],
            ema_params=items.get('ema_params'),
            opt_state=items['opt_state'],
            restarts=health.pop('restarts'),
            health=health,
            **items['counters'],
        )


def init_state(key, model: TarFlow, optimizer, *, ema: bool) -> TrainState:
    """A new state; its parameters, an identity map, follow from `key`."""
    params = model.init_params(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        opt_state=optimizer.init(params),
        window={name: jnp.zeros(()) for name in ('loss', 'grad_norm', 'steps')},
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        health=health.init(),
        restarts=jnp.zeros((), jnp.int32),
    )
