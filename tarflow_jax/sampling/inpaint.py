"""In-painting: images whose known pixels are given, drawn from the model's posterior.

A flow is a bijection, so a Markov chain can sample the posterior over latents or over images. This
one moves through images: only the unknown pixels change, the known ones are exact at every step,
and a Langevin step costs one forward pass and its gradient; through latents it would cost the
sequential inverse. A Metropolis-Hastings test with the exact density, as the model computes it in
its dtype, accepts or rejects each step, so that the posterior is the stationary distribution of the
chain, whatever its length.

A chain mixes slowly between different kinds of images. It therefore starts at one of many samples
of the model, which is drawn with a weight that grows with the similarity of its known pixels to the
given ones. With more of these candidates, the proportions of the kinds of images are more accurate.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.errors import InputError, RunError
from tarflow_jax.flow.attention import PRECISION
from tarflow_jax.flow.inputs import as_batch, as_key, as_labels
from tarflow_jax.flow.parts import map_parts, unroll_for_gradients
from tarflow_jax.flow.tarflow import TarFlow, check_params
from tarflow_jax.sampling.denoise import NOISE_STD, denoise
from tarflow_jax.sampling.sample import sample
from tarflow_jax.values import Integer

CANDIDATES = Integer(1)
STEPS = Integer(1)
TARGET_ACCEPTANCE = 0.574  # Langevin steps are then the most efficient (Roberts and Rosenthal)
_CANDIDATES_AT_A_TIME = 100
_MIN_SPREAD = 0.05  # of known pixels, where there is little noise or none
_FIRST_STEP = 0.08  # of pixels; adapted in the first half of the chain
_UNIFORM_LABEL_RATE = 0.1  # fraction of labels proposed uniformly, whatever the candidates have

_matmul = functools.partial(jnp.matmul, precision=PRECISION)


class Inpainting(NamedTuple):
    """Completed images, and how they were found.

    Attributes:
      images: float32 [B, H, W, C], the known pixels as they were given.
      labels: int32 [B], those given or, where they were unknown, those sampled.
      acceptance: the fraction of Langevin steps that were accepted [B], in the second half of the
        chain; about 0.57 is best, below 0.1 the chain hardly moved.
    """

    images: jax.Array
    labels: jax.Array
    acceptance: jax.Array


class _ChainState(NamedTuple):
    """The state of the chains.

    Attributes:
      x: images [B, H, W, C].
      labels: int32 [B].
      log_prob: log p(x | labels) [B].
      score: its gradient for x [B, H, W, C], 0 at known pixels.
    """

    x: jax.Array
    labels: jax.Array
    log_prob: jax.Array
    score: jax.Array


def inpaint(
    model: TarFlow,
    params,
    images,
    mask,
    labels=None,
    *,
    key,
    noise_std: float,
    num_candidates: int = 4000,
    num_steps: int = 100,
) -> Inpainting:
    """Draws the unknown pixels of images given the known ones.

    Args:
      model: the flow.
      params: its parameters.
      images: float [B, H, W, C], pixels in [-1, 1]; unknown ones may be anything finite.
      mask: bool [H, W], [H, W, C] or [B, H, W, C], True where a pixel is known.
      labels: int [B], -1 for an unknown label, which is then sampled along with the pixels; None if
        all are unknown.
      key: a key of `jax.random.key`, or a seed.
      noise_std: the noise that the model was trained with. It is added to the known pixels, and a
        score step removes it from the completed images, see `denoise`.
      num_candidates: samples of the model among which each chain's start is drawn. They serve all
        images of a call, and cost most of its time where a model is large: hundreds do there.
      num_steps: steps of each chain.

    Raises:
      InputError: the model cannot serve the shapes, the labels or the mask.
      RunError: no sample of the model, or of a given label, is finite and of a reasonable size.
    """
    check_params(model, params)
    images = as_batch('images', images, model.image_shape)
    known = as_mask(mask, images.shape)
    # A model without classes ignores labels: for it, all are unknown.
    labels = as_labels(labels if model.num_classes else None, len(images), model.num_classes)
    noise_std = NOISE_STD.check('noise_std', noise_std)
    num_candidates = CANDIDATES.check('num_candidates', num_candidates)
    num_steps = STEPS.check('num_steps', num_steps)
    keys = jax.random.split(as_key(key), 4)
    noisy = images + noise_std * jax.random.normal(keys[0], images.shape, jnp.float32)
    candidates, of_class = _draw_candidates(model, params, keys[1], labels, num_candidates)
    spread = max(2 * noise_std, _MIN_SPREAD)
    x, first_labels, logits = _initialize_chains(
        keys[2], noisy, known, labels, candidates, of_class, spread, max(model.num_classes, 1)
    )
    redraws_labels = bool(model.num_classes) and bool((labels < 0).any())
    x, labels, acceptance = _run_chains(
        *(model, params, keys[3], x, known, first_labels, labels < 0, logits),
        *(num_steps, redraws_labels),
    )
    completed = denoise(model, params, x, labels, noise_std=noise_std) if noise_std else x
    return Inpainting(jnp.where(known, images, completed), labels, acceptance)


def as_mask(mask, shape: tuple[int, ...]) -> jax.Array:
    """A mask of known pixels as bool [B, H, W, C]; InputError for another type or shape."""
    mask = np.asarray(mask)
    shapes = (shape[1:3], shape[1:], shape[:3], shape)
    if mask.dtype != bool or mask.shape not in shapes:
        raise InputError(
            f'mask must be True where a pixel is known and False elsewhere, of shape {shape[1:3]} '
            f'or {shape}; got {mask.dtype} {mask.shape}.'
        )
    if mask.shape in (shape[1:3], shape[:3]):
        mask = mask[..., None]
    return jnp.broadcast_to(mask if mask.ndim == 4 else mask[None], shape)


def _draw_candidates(model, params, key, labels, number: int):
    """Samples [M, H, W, C] and their labels [M]: of all classes, or of those that are given."""
    is_unknown = bool((labels < 0).any())
    classes = np.arange(model.num_classes) if is_unknown else np.unique(np.asarray(labels))
    number = max(number, len(classes))
    of_class = np.resize(classes, number) if len(classes) else np.full(number, -1)
    noise = jax.random.normal(key, (number, *model.image_shape), jnp.float32)
    parts = [slice(i, i + _CANDIDATES_AT_A_TIME) for i in range(0, number, _CANDIDATES_AT_A_TIME)]
    candidates = [sample(model, params, noise[part], of_class[part]) for part in parts]
    return _keep_finite(jnp.concatenate(candidates), of_class, np.asarray(labels))


def _keep_finite(candidates, of_class, labels):
    """The candidates whose distances can be computed; RunError if a label [B] has none."""
    usable = np.asarray(jnp.isfinite(jnp.square(candidates).sum(axis=(1, 2, 3))))
    lacking = np.setdiff1d(labels[labels >= 0], of_class[usable]).tolist()
    if lacking or not usable.any():
        of_label = f' of the label {lacking[0]}' if lacking else ''
        count = (of_class == lacking[0]).sum() if lacking else len(of_class)
        raise RunError(
            f'none of the {count} samples{of_label} can be used (not finite, or far too large): '
            'raise num_candidates, or take an earlier checkpoint; the model may have diverged.'
        )
    return candidates[usable], jnp.asarray(of_class[usable], jnp.int32)


@functools.partial(jax.jit, static_argnums=7)
def _initialize_chains(key, noisy, known, labels, candidates, of_class, spread, num_classes):
    """Starts [B, H, W, C] with labels [B], and log-probabilities of labels to propose [B, classes].

    The weight of a candidate is the likelihood of the given pixels under Gaussian noise of standard
    deviation `spread` around the candidate's known pixels.
    """
    rows, weights = noisy.reshape(len(noisy), -1), known.reshape(len(noisy), -1)
    weights = weights.astype(jnp.float32)
    columns = candidates.reshape(len(candidates), -1).T
    distance = (
        (weights * rows**2).sum(axis=1)[:, None]
        - 2 * _matmul(weights * rows, columns)
        + _matmul(weights, columns**2)
    )
    fits = (labels[:, None] < 0) | (labels[:, None] == of_class[None])
    log_weights = jnp.where(fits, -distance / (2 * spread**2), -jnp.inf)
    chosen = jax.random.categorical(key, log_weights)
    shares = _matmul(jax.nn.softmax(log_weights), jax.nn.one_hot(of_class, num_classes))
    logits = jnp.log((1 - _UNIFORM_LABEL_RATE) * shares + _UNIFORM_LABEL_RATE / num_classes)
    return jnp.where(known, noisy, candidates[chosen]), of_class[chosen], logits


@functools.partial(jax.jit, static_argnums=(0, 8, 9))
@jax.named_scope('inpaint')
def _run_chains(
    model, params, key, x, known, labels, is_unknown, logits, num_steps, redraws_labels
):
    """The last images and labels of the chains, and the fraction of steps accepted [B]."""
    model = unroll_for_gradients(model)

    def evaluate(x, labels) -> _ChainState:
        def total_log_prob(x, labels):
            log_prob = model.apply({'params': params}, x, labels, method='log_prob')
            return log_prob.sum(), log_prob

        value_and_grad = jax.grad(total_log_prob, has_aux=True)
        score, log_prob = map_parts(value_and_grad, model, x, labels)
        return _ChainState(x, labels, log_prob, jnp.where(known, 0, score))

    def step(carry, inputs):
        state, size = carry
        key, rate = inputs
        keys = jax.random.split(key, 4)
        state, accepted = _langevin_step(evaluate, keys[:2], state, size, known)
        if redraws_labels:
            state = _label_step(evaluate, keys[2:], state, is_unknown, logits)
        return (state, size * jnp.exp(rate * (accepted - TARGET_ACCEPTANCE))), accepted

    number = jnp.arange(num_steps)
    rates = jnp.where(number < num_steps // 2, (number + 1.0) ** -0.5, 0)  # of adaptation
    carry = evaluate(x, labels), jnp.full(len(x), _FIRST_STEP)
    (state, _), accepted = jax.lax.scan(step, carry, (jax.random.split(key, num_steps), rates))
    return state.x, state.labels, accepted[num_steps // 2 :].mean(axis=0)


def _langevin_step(evaluate, keys, state: _ChainState, size, known):
    """x + size^2 / 2 * score + size * noise, accepted by Metropolis and Hastings' rule."""
    size = size[:, None, None, None]
    noise = jnp.where(known, 0, jax.random.normal(keys[0], state.x.shape, jnp.float32))
    proposal = evaluate(state.x + size**2 / 2 * state.score + size * noise, state.labels)
    noise_back = jnp.where(known, 0, state.x - proposal.x - size**2 / 2 * proposal.score) / size
    log_ratio = _sum((noise**2 - noise_back**2) / 2) + proposal.log_prob - state.log_prob
    return _accept(keys[1], log_ratio, state, proposal)


def _label_step(evaluate, keys, state: _ChainState, is_unknown, logits):
    """A Metropolis-Hastings step of the unknown labels, proposed with probabilities of `logits`."""
    proposed = jax.random.categorical(keys[0], logits).astype(jnp.int32)
    proposal = evaluate(state.x, jnp.where(is_unknown, proposed, state.labels))

    def log_share(labels):
        return jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

    log_ratio = (
        proposal.log_prob - state.log_prob + log_share(state.labels) - log_share(proposal.labels)
    )
    return _accept(keys[1], log_ratio, state, proposal)[0]


def _accept(key, log_ratio, state: _ChainState, proposal: _ChainState):
    """Moves to `proposal` with probability min(1, exp(log_ratio)); returns which did, float [B]."""
    accepted = jnp.log(jax.random.uniform(key, log_ratio.shape, jnp.float32)) < log_ratio

    def choose(new, old):
        return jnp.where(accepted.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, proposal, state), accepted.astype(jnp.float32)


def _sum(x):
    return x.sum(axis=(1, 2, 3))
