"""The step that advances the state of a training run."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from tarflow_jax.flow.norms import fold_norms
from tarflow_jax.flow.parts import split
from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.parallel import rules
from tarflow_jax.training import health, objective
from tarflow_jax.training.state import TrainState

PRIOR_UPDATE_RATE = 0.1  # of the tracked prior variance, a step; that of the published models


def make_train_step(
    model: TarFlow,
    optimizer: optax.GradientTransformation,
    noise: Noise,
    *,
    seed: int,
    drop_label: float,
    random_flip: bool,
    ema_decay: float,
    window_steps: int,
    microbatches: int = 1,
    separate: bool = False,
    folded: bool = False,
    gather: str = 'layer',
    restart_factor: float = 1.0,
):
    """The function (state, batch) -> (state, report) that a run applies at every step.

    `batch` holds 'image' levels [B, H, W, C] and 'label' [B]. The report has the means over the
    current window of `window_steps` steps, and the counts of skipped steps. With `microbatches` the
    gradient is summed over as many equal parts of the batch, one after the other: less memory, the
    same step. With `separate` each device computes the gradient of its own rows, and the gradients
    are reduced once a step instead of once a part; parameters are then whole on every device. With
    `folded`, norms are folded into the products after them, once a step. Parameters that are
    sharded over devices are gathered layer by layer as they are used (`gather` 'layer'), or all of
    them once a 'step', in the type they are used in: more memory, less communication. Every
    restart of the run multiplies the learning rate by `restart_factor`.
    """

    def loss_fn(params, images, labels):
        nats, latents = objective.negative_log_likelihood(model, params, images, labels)
        return nats.mean(), jnp.mean(jax.lax.stop_gradient(latents) ** 2, axis=0)

    def cast(params):
        return {**params, 'blocks': model.token_flow().block().cast(params['blocks'])}

    update = optax.with_extra_args_support(optimizer).update
    gradient = accumulate(jax.value_and_grad(loss_fn, has_aux=True), microbatches)
    if separate:
        gradient = per_device_gradient(gradient)
    if folded:
        gradient = gradient_of_folded(gradient, cast)

    def train_step(state: TrainState, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        noise_key, drop_key, flip_key = jax.random.split(key, 3)
        levels, labels = batch['image'], batch['label']
        if random_flip:
            levels = objective.flip_half(flip_key, levels)
        images = noise.add(noise_key, levels)
        labels = objective.drop_labels(drop_key, labels, drop_label)

        params = state.params
        if gather == 'step':  # folded parameters are rounded afterwards
            params = rules.gathered(params if folded else cast(params))
        (loss, latent_var), grads = gradient(params, images, labels)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        grad_norm = optax.tree.norm(grads)
        with jax.named_scope('optimizer'):
            updates, opt_state = update(grads, state.opt_state, state.params, step=state.step)
            if restart_factor != 1:
                updates = jax.tree.map(lambda u: u * restart_factor**state.restarts, updates)
            params = optax.apply_updates(state.params, updates)
        if model.volume_preserving:
            params = track_prior(params, state.params['prior_var'], latent_var)
        learned = (params, opt_state, update_ema(state, params, ema_decay))

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        before = (state.params, state.opt_state, state.ema_params)
        params, opt_state, ema_params = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), learned, before
        )
        state = TrainState(
            step=state.step + 1,
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
            window=add_to_window(
                state, window_steps, finite, {'loss': loss, 'grad_norm': grad_norm}
            ),
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
            health=health.update(state.health, loss, finite, state.step),
            restarts=state.restarts,
        )
        return state, {**report(state), 'sound': health.is_sound(state.health, loss, finite)}

    return train_step


def accumulate(gradient, microbatches: int):
    """Returns a function like `gradient` that averages over parts of the batch, one after another.

    Both functions map (params, images, labels) to a tree of means over the batch.
    """
    if microbatches == 1:
        return gradient

    def accumulated(params, images, labels):
        parts = (split(images, microbatches), split(labels, microbatches))
        shapes = jax.eval_shape(gradient, params, images, labels)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)

        def add(totals, part):
            return jax.tree.map(jnp.add, totals, gradient(params, *part)), None

        totals, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda total: total / microbatches, totals)

    return accumulated


def per_device_gradient(gradient):
    """Returns a function like `gradient` in which each device computes the mean of its own rows.

    Both functions map (params, images, labels) to a tree of means over the batch. The result must
    be called under `rules.activation_sharding`.
    """

    def of_device(params, images, labels):
        with nn.logical_axis_rules(()):  # nothing is split within a device
            means = gradient(params, images, labels)
        means = jax.tree.map(lambda x: x.astype(jnp.float32), means)
        return jax.lax.pmean(means, rules.BATCH_AXES)

    return jax.shard_map(
        of_device,
        in_specs=(rules.REPLICATED, rules.BATCH, rules.BATCH),
        out_specs=rules.REPLICATED,
        check_vma=False,
    )


def gradient_of_folded(gradient, cast):
    """Returns a function like `gradient` that calls it with folded norms, see `fold_norms`.

    The function `cast` then rounds parameters once, which layers would otherwise do for every part
    of a batch.
    """

    def fold(params):
        blocks = params['blocks']
        return {**params, 'blocks': {**blocks, 'layers': fold_norms(blocks['layers'])}}

    def of_folded(params, images, labels):
        params, pull_back = jax.vjp(fold, params)
        values, grads = gradient(cast(params), images, labels)
        (grads,) = pull_back(jax.tree.map(lambda g, x: g.astype(x.dtype), grads, params))
        return values, grads

    return of_folded


def track_prior(params, prior_var, batch_var):
    """Moves the prior variance [H, W, C] of a volume-preserving model towards that of the batch."""
    return {**params, 'prior_var': prior_var + PRIOR_UPDATE_RATE * (batch_var - prior_var)}


def update_ema(state: TrainState, params, decay: float):
    """The moving average updated with `params`; it forgets faster during its first steps."""
    if state.ema_params is None:
        return None
    rate = 1 - jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda ema, new: ema + rate * (new - ema), state.ema_params, params)


def add_to_window(state: TrainState, window_steps, finite, values):
    """Adds the values of a finite step; a new window starts after every `window_steps` steps.

    Kept in the state, so that a resumed run reports the same means as an uninterrupted one.
    """
    restart = state.step % window_steps == 0
    added = {**values, 'steps': 1.0}
    return {
        name: jnp.where(restart, 0.0, total) + jnp.where(finite, added[name], 0.0)
        for name, total in state.window.items()
    }


def report(state: TrainState):
    """Means over the window, the counts of skipped steps, and whether the run has diverged.

    Means are NaN where every step of the window was skipped.
    """
    totals = dict(state.window)
    steps = totals.pop('steps')
    return {
        **{name: total / steps for name, total in totals.items()},
        'skipped': state.skipped,
        'skipped_in_a_row': state.skipped_in_a_row,
        'diverged': health.has_diverged(state.health),
    }
