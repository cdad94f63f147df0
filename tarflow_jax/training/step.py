"""The train step of a config, compiled for a mesh."""

import jax

from tarflow_jax import stopping
from tarflow_jax.parallel import rules
from tarflow_jax.training import state as states


def jit_train_step(config, model, optimizer, noise, mesh, shardings):
    """The step of a config, for states laid out as `shardings`.

    It is (state, batch, signals) -> (state, report), where `signals` is that of `Stop.received_on`,
    and the report's 'signal' is the largest of them: a sum of its own, beside those of the step,
    could be mistaken for one of them between processes. The state that goes in is used up: its
    memory becomes that of the new one.
    """
    train_step = states.make_train_step(
        model,
        optimizer,
        noise,
        seed=config.seed,
        drop_label=config.train.drop_label,
        random_flip=config.data.random_flip,
        ema_decay=config.train.ema_decay,
        window_steps=config.train.log_every,
        microbatches=config.train.microbatches,
        gather=config.train.gather,
        restart_factor=config.train.restart_factor,
    )

    def step_and_signal(state, batch, signals):
        state, report = train_step(state, batch)
        return state, {**report, 'signal': signals.max()}

    return jax.jit(
        step_and_signal,
        in_shardings=(shardings, rules.batch_sharding(mesh), stopping.sharding(mesh)),
        out_shardings=(shardings, rules.replicated(mesh)),
        donate_argnums=0,
    )
