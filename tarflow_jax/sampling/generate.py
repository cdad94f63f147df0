"""Many samples, batch by batch."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.errors import InputError, RunError
from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.parallel import distributed
from tarflow_jax.parallel.mesh import shared_batch_size
from tarflow_jax.sampling.denoise import denoise
from tarflow_jax.sampling.sequential import sample

LABELS = ('even', 'uniform')
MOST_DRAWS = 10  # of the noise of one sample that does not get finite
REMEDIES = (
    'Lower sample.guidance or sample.prior_temperature, sample in model.dtype=float32, or take an '
    'earlier --checkpoint: the model may have diverged.'
)
_LABEL_STREAM = 1


class Drawn(NamedTuple):
    """A batch of samples over the mesh, the last one filled up with more than were asked.

    Attributes:
      images: float32 [B, H, W, C].
      index: numbers of the samples [B], NumPy.
      mask: which of them were asked for [B], NumPy.
      num_redrawn: rows whose noise was drawn anew because the sample was not finite.
    """

    images: jax.Array
    index: np.ndarray
    mask: np.ndarray
    num_redrawn: int


def spread_labels(how: str, num_samples: int, num_classes: int, seed: int) -> np.ndarray | None:
    """Labels int32 [num_samples] of samples; None without classes.

    'even' ones run through the classes, 0, 1, ..., 0, 1, ...; 'uniform' ones are drawn, each a
    function of (seed, number of the sample) alone.
    """
    if how not in LABELS:
        raise InputError(f'labels must be one of {", ".join(LABELS)}; got {how!r}.')
    if not num_classes:
        return None
    if how == 'even':
        return np.arange(num_samples, dtype=np.int32) % num_classes
    words = np.random.Philox(key=np.array([seed, _LABEL_STREAM], np.uint64)).random_raw(num_samples)
    return (words % np.uint64(num_classes)).astype(np.int32)


def generate(model: TarFlow, params, mesh, *, most_draws: int = 1, **what) -> Iterator[np.ndarray]:
    """`draw` for the eyes: batches [B, H, W, C], float32, as NumPy, in all `num_samples`.

    Every process has to run through all batches, its devices drawing their share of each; the
    main one alone gets them, the others get batches of no images.
    """
    for drawn in draw(model, params, mesh, most_draws=most_draws, **what):
        images = distributed.fetch(drawn.images)[drawn.mask]
        yield images[: len(images) if distributed.is_main() else 0]


def draw(
    model: TarFlow,
    params,
    mesh,
    *,
    num_samples: int,
    batch_size: int,
    seed: int,
    first: int = 0,
    labels: str = 'even',
    denoise_std: float = 0.0,
    most_draws: int = MOST_DRAWS,
    must_be_finite: bool = True,
    before_batch: Callable[[], object] = lambda: None,
    **how,
) -> Iterator[Drawn]:
    """Samples, in batches that stay on the devices.

    Args:
      model: the flow.
      params: its parameters.
      mesh: the devices, of all processes, each of which has to run through all batches.
      num_samples: how many.
      batch_size: samples at a time; does not change them.
      first: number of the first sample to draw; those before count as drawn.
      seed: of the noise. The noise of a sample depends on (seed, index of the sample) only.
      labels: 'even' or 'uniform', see `spread_labels`.
      denoise_std: of the noise that a score step removes from the samples; 0 for no such step.
      most_draws: how often the noise of a sample is drawn, with its label kept and the other rows
        untouched, until the sample is finite; 1 to take what comes.
      must_be_finite: whether a sample that never gets finite is an error.
      before_batch: is called before each batch; what it raises ends the drawing.
      **how: guidance and temperatures as of `sample`.

    Raises:
      RunError: a sample is not finite after all draws, of which there are several.
    """
    batch_size = shared_batch_size(batch_size, num_samples, mesh)
    num_rows = num_samples + batch_size
    all_labels = spread_labels(labels, num_rows, model.num_classes, seed)
    if all_labels is None:
        all_labels = np.full(num_rows, -1, np.int32)
    how = {**how, 'denoise_std': denoise_std}
    rows = distributed.local_rows(mesh, batch_size)
    for start in range(first, num_samples, batch_size):
        before_batch()
        index = np.arange(start, start + batch_size, dtype=np.int32)
        local = index[rows], all_labels[index][rows], np.zeros(len(rows), np.int32)
        placed = distributed.put_rows(local, mesh, batch_size, rows)
        images, num_redrawn, failed = _draw_finite(model, params, seed, placed, how, most_draws)
        if failed and must_be_finite:
            raise RunError(
                f'a sample is not finite after {most_draws} draws of its noise. {REMEDIES}'
            )
        yield Drawn(images, index, index < num_samples, num_redrawn)


def _draw_finite(model, params, seed, placed, how, most_draws):
    """Samples, how many of them had to be drawn anew, and whether that did not help."""
    index, labels, attempts = placed
    images, finite = draw_batch(model, params, seed, index, labels, attempts, tuple(how.items()))
    num_redrawn = 0
    for _ in range(1, most_draws):
        bad = int((~distributed.fetch(finite)).sum())
        if not bad:
            break
        num_redrawn += bad
        attempts = _try_again(finite, attempts)
        anew = draw_batch(model, params, seed, index, labels, attempts, tuple(how.items()))
        images, finite = _keep_finite(finite, images, *anew)
    return images, num_redrawn, most_draws > 1 and not distributed.fetch(finite).all()


@jax.jit
def _try_again(finite, attempts):
    return jnp.where(finite, attempts, attempts + 1)


@jax.jit
def _keep_finite(finite, images, new_images, new_finite):
    return jnp.where(finite[:, None, None, None], images, new_images), finite | new_finite


@functools.partial(jax.jit, static_argnums=(0, 6))
def draw_batch(model, params, seed, index, labels, attempts, how):
    """One program, so that no process needs to see the arrays that all of them share."""
    how = dict(how)
    denoise_std = how.pop('denoise_std')
    noise = _noise(model.image_shape, seed, index, attempts)
    images = sample(model, params, noise, labels, **how)
    if denoise_std:
        images = denoise(model, params, images, labels, noise_std=denoise_std)
    return images, jnp.isfinite(images).all(axis=(1, 2, 3))


def _noise(image_shape, seed, index, attempts):
    def draw_one(index, attempt):
        key = jax.random.fold_in(jax.random.key(seed), index)
        again = jax.random.fold_in(key, attempt)
        return jax.random.normal(jnp.where(attempt == 0, key, again), image_shape)

    return jax.vmap(draw_one)(index, attempts)
