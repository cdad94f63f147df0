"""What training runs on the devices: a new state, and the step that advances one."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import optax

from tarflow_jax import stopping
from tarflow_jax.errors import InputError
from tarflow_jax.flow.parts import count_parts, hidden_bytes, unroll_for_gradients
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.mesh import num_batch_shards
from tarflow_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tarflow_jax.training.state import TrainState, init_state
from tarflow_jax.training.train_step import make_train_step
from tarflow_jax.values import INT32_MAX

_LEVEL = 'xla_backend_optimization_level'
MIN_SHARED_BYTES = 2**21  # of the hidden features of a batch


@dataclasses.dataclass(frozen=True, eq=False)
class TrainProgram:
    """The compiled functions of a training, and the state between them.

    Attributes:
      microbatches: parts of a batch, one after the other.
      schedule: the learning rate by step.
      state: a `TrainState` of shapes, each with its sharding over the mesh.
      init: key -> a new state, sharded over the mesh.
      step: (state, batch, signals) -> (state, report). `signals` are those of `Stop.signal_array`,
        and the report's 'signal' is the largest of them. It is computed within the step, because a
        separate collective could be confused with one of the step's collectives between processes.
        The input state is donated: its memory is reused for the new state.
    """

    microbatches: int
    schedule: optax.Schedule
    state: TrainState
    init: Callable[[jax.Array], TrainState]
    step: Any


def make_program(experiment, noise: Noise, total_steps: int) -> TrainProgram:
    """Makes the program that trains an experiment; nothing is compiled before it is called.

    Args:
      experiment: see `build.Experiment`; its data set is not needed.
      noise: the noise that turns levels into pixels.
      total_steps: of the training, over which the learning rate falls.

    Raises:
      InputError: the devices cannot share a batch, or the schedule makes no sense.
    """
    config, model, mesh = experiment.config, experiment.model, experiment.mesh
    _check_shares(config.train, mesh)
    microbatches = count_microbatches(experiment)
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    if not config.train.microbatches:
        model = unroll_for_gradients(model, mesh.abstract_mesh)
    settings = config.optimizer
    schedule = learning_rate_schedule(
        peak=settings.peak_learning_rate,
        final=settings.final_learning_rate,
        warmup_steps=settings.warmup_steps,
        total_steps=total_steps,
    )
    optimizer = make_optimizer(
        schedule,
        b1=settings.b1,
        b2=settings.b2,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        first_moment_dtype=settings.first_moment_dtype,
    )
    init = functools.partial(
        init_state, model=model, optimizer=optimizer, ema=config.train.ema_decay > 0
    )
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = rules.shardings(shapes, mesh)
    separate = on_cpu and mesh.shape['data'] == mesh.size > 1
    if separate:  # parameters are whole on every device; their moments need not be
        moments = rules.split_over_data(shapes.opt_state, shardings.opt_state)
        shardings = shardings.replace(opt_state=moments)
    train_step = make_train_step(
        model,
        optimizer,
        noise,
        seed=config.seed,
        drop_label=config.train.drop_label,
        random_flip=config.data.random_flip,
        ema_decay=config.train.ema_decay,
        window_steps=config.train.log_every,
        microbatches=microbatches,
        separate=separate,
        folded=on_cpu or mesh.size == 1,
        gather=config.train.gather,
        restart_factor=config.train.restart_factor,
    )

    def step_and_signal(state, batch, signals):
        state, report = train_step(state, batch)
        return state, {**report, 'signal': signals.max()}

    return TrainProgram(
        microbatches,
        schedule,
        state=rules.with_shardings(shapes, shardings),
        init=jax.jit(init, out_shardings=shardings, compiler_options=_options_of_init(on_cpu)),
        step=jax.jit(
            step_and_signal,
            in_shardings=(shardings, rules.batch_sharding(mesh), stopping.sharding(mesh)),
            out_shardings=(shardings, rules.replicated(mesh)),
            donate_argnums=0,
        ),
    )


def _options_of_init(on_cpu: bool) -> dict[str, int] | None:
    """Options that halve the time XLA takes to compile parameter initialisation, which runs once.

    They were seen to have the same bits as at its own level. None on accelerators, and where the
    user has chosen a level.
    """
    is_chosen = _LEVEL in os.environ.get('XLA_FLAGS', '')
    return {_LEVEL: 1} if on_cpu and not is_chosen else None


def count_steps(settings, num_images: int) -> int:
    """Returns how many steps a training takes.

    Args:
      settings: the section train of a config.
      num_images: in the training split.

    Raises:
      InputError: the images do not fill a batch, or there are more steps than can be counted.
    """
    if settings.batch_size > num_images:
        raise InputError(
            f'train.batch_size {settings.batch_size} is larger than the training split of '
            f'{num_images} images; choose at most {num_images}.'
        )
    steps = settings.num_epochs * num_images / settings.batch_size
    if steps > INT32_MAX:
        raise InputError(
            f'train.num_epochs {settings.num_epochs:g} would be {steps:.3g} steps; choose at '
            f'most {INT32_MAX * settings.batch_size / num_images:.3g}.'
        )
    return math.ceil(steps)


def count_microbatches(experiment) -> int:
    """Returns the number of parts of a batch, computed one after the other.

    Where the config leaves it to the program (0), see `parts.count_parts`.
    """
    settings = experiment.config.train
    if settings.microbatches:
        return settings.microbatches
    return count_parts(experiment.model, settings.batch_size, experiment.mesh.abstract_mesh)


def rows_to_share_in_training(config) -> int:
    """How many images the cores of a CPU share at a time; 1 where a step is too short for that."""
    if hidden_bytes(config.model, config.train.batch_size) < MIN_SHARED_BYTES:
        return 1
    return config.train.batch_size // max(config.train.microbatches, 1)


def _check_shares(settings, mesh) -> None:
    """Raises InputError unless the devices share every part of a batch evenly."""
    batch_size, microbatches = settings.batch_size, max(settings.microbatches, 1)
    shares = num_batch_shards(mesh)
    if batch_size % (shares * microbatches):
        parts = f', in {microbatches} parts (train.microbatches)' if microbatches > 1 else ''
        raise InputError(
            f'train.batch_size {batch_size} cannot be divided evenly among the {shares} devices of '
            f'mesh.data and mesh.fsdp{parts}; choose a multiple of {shares * microbatches}.'
        )
