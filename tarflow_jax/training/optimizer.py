"""AdamW with a linear warm-up and a cosine schedule."""

import math

import jax
import jax.numpy as jnp
import optax

from tarflow_jax.errors import InputError


def learning_rate_schedule(
    *, peak: float, final: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """From `final` linearly up to `peak`, then along a cosine back to `final` at `total_steps`.

    A pure function of the step that stays at `final` afterwards: a longer run is another curve,
    never a second rise.

    Raises:
      InputError: the final rate is above the peak, or the warm-up is no shorter than the training.
    """
    if final > peak:
        raise InputError(
            f'optimizer.final_learning_rate {final} is above optimizer.peak_learning_rate {peak}, '
            'to which the rate rises before it falls: lower the one or raise the other.'
        )
    if not 0 <= warmup_steps < total_steps:
        raise InputError(
            f'the warm-up of {warmup_steps} steps must be shorter than the training of '
            f'{total_steps} steps: lower optimizer.warmup_steps or raise train.num_epochs.'
        )
    return optax.warmup_cosine_decay_schedule(final, peak, warmup_steps, total_steps, final)


def make_optimizer(
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    clip_norm: float,
    first_moment_dtype: str = 'float32',
) -> optax.GradientTransformationExtraArgs:
    """AdamW with decoupled decay of the kernels (not of norms, biases or embeddings).

    Its `update` takes the `step` of the run, from 0, which sets the learning rate. Adam's bias
    correction counts updates, of which a skipped step makes none.

    Args:
      schedule: learning rate by step.
      b1: decay of the first moment.
      b2: decay of the second moment.
      weight_decay: multiplied by the learning rate.
      clip_norm: largest global norm of the gradients, 0 for no clipping.
      first_moment_dtype: 'float32', or 'bfloat16' to keep the mean of the gradients in half the
        memory. Sums and the second moment are always float32.
    """
    adamw = optax.chain(  # as optax.adamw, so that checkpoints fit
        optax.scale_by_adam(b1, b2, mu_dtype=first_moment_dtype),
        optax.add_decayed_weights(weight_decay, _is_kernel),
        _scale_by_rate_of_step(schedule),
    )
    clip = optax.clip_by_global_norm(clip_norm or math.inf)
    return optax.chain(clip, adamw)  # always both: the state's shape does not depend on clip_norm


def _scale_by_rate_of_step(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Scales by minus the learning rate; an unused counter is kept so that checkpoints fit."""

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra):
        del params
        rate = jnp.negative(schedule(extra['step']))
        scaled = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
        return scaled, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _is_kernel(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)
