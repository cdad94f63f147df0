"""Many samples, batch by batch."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.errors import RunError
from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.parallel import arrays
from tarflow_jax.parallel.mesh import padded_batch_size
from tarflow_jax.sampling.denoise import denoise
from tarflow_jax.sampling.labels import spread_labels
from tarflow_jax.sampling.parallel import Calibration
from tarflow_jax.sampling.sample import sample

MAX_DRAWS = 10  # of the noise of a sample that is not finite
REMEDIES = (
    'Lower sample.guidance or sample.prior_temperature, sample in model.dtype=float32, or take an '
    'earlier --checkpoint: the model may have diverged.'
)


class SampleBatch(NamedTuple):
    """A batch of samples over the mesh; extra samples pad the last batch to the size of the others.

    Attributes:
      images: float32 [B, H, W, C].
      index: numbers of the samples [B], NumPy.
      mask: False for padding [B], NumPy.
      num_redrawn: noises drawn again, because a sample was not finite.
      residual: of each sample [B], see `sample`, NumPy; None if it was not measured.
      resolved: whether each sample was solved again token by token [B], NumPy; likewise None.
    """

    images: jax.Array
    index: np.ndarray
    mask: np.ndarray
    num_redrawn: int
    residual: np.ndarray | None = None
    resolved: np.ndarray | None = None


def host_images(batch: SampleBatch) -> np.ndarray:
    """Fetches the samples of a batch, float32 [n, H, W, C]; collective."""
    return arrays.fetch(batch.images)[batch.mask]


def sample_batches(
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
    certify: bool = False,
    max_draws: int = MAX_DRAWS,
    must_be_finite: bool = True,
    before_batch: Callable[[], object] = lambda: None,
    calibration: Calibration | None = None,
    **settings,
) -> Iterator[SampleBatch]:
    """Draws samples in batches, which stay on the devices.

    Args:
      model: the flow.
      params: its parameters.
      mesh: the devices of all processes, each of which must consume all batches.
      num_samples: the number of samples, those before `first` included.
      batch_size: samples per batch; does not change the samples, in parallel up to the tolerance.
      seed: seed of the noise. The noise of a sample depends on (seed, number of the sample) only.
      first: number of the first sample.
      labels: 'even', 'uniform' or '3,3,7', see `spread_labels`.
      denoise_std: noise that a score step removes from the samples, see `denoise`; 0 for no step.
      certify: whether to measure residuals, and to solve again what is above the tolerance.
      max_draws: most draws of the noise of a sample that is not finite. Its label and the other
        samples stay the same.
      must_be_finite: whether a sample that is not finite after several draws is an error.
      before_batch: a function that is called before each batch; its exceptions end the sampling.
      calibration: how blocks are solved, see `sample`.
      **settings: guidance, temperatures and method, see `sample`.

    Raises:
      RunError: a sample is not finite after `max_draws` draws, more than one.
    """
    batch_size = padded_batch_size(batch_size, num_samples, mesh)
    num_rows = num_samples + batch_size
    all_labels = spread_labels(labels, num_rows, model.num_classes, seed)
    if all_labels is None:
        all_labels = np.full(num_rows, -1, np.int32)
    static = tuple({**settings, 'denoise_std': denoise_std, 'certify': certify}.items())

    def program(index, labels, attempts):
        return sample_batch(model, params, calibration, seed, index, labels, attempts, static)

    rows = arrays.local_rows(mesh, batch_size)
    for start in range(first, num_samples, batch_size):
        before_batch()
        index = np.arange(start, start + batch_size, dtype=np.int32)
        local = index[rows], all_labels[index][rows], np.zeros(len(rows), np.int32)
        placed = arrays.put_rows(local, mesh, batch_size)
        drawn, num_redrawn, all_finite = redraw(program, placed, max_draws)
        if must_be_finite and not all_finite:
            raise RunError(
                f'a sample is not finite after {max_draws} draws of its noise. {REMEDIES}'
            )
        certificate = arrays.fetch((drawn.residual, drawn.resolved)) if certify else ()
        yield SampleBatch(drawn.images, index, index < num_samples, num_redrawn, *certificate)


class DrawnBatch(NamedTuple):
    """What `sample_batch` gives: images, and whether each is finite, its residual, and resolved."""

    images: jax.Array
    finite: jax.Array
    residual: jax.Array | None = None
    resolved: jax.Array | None = None


def redraw(program, placed, max_draws: int = MAX_DRAWS):
    """Draws samples, and redraws those that are not finite with other noise.

    Args:
      program: (index, labels, attempts) -> `DrawnBatch`; see `sample_batch`.
      placed: its arguments, for the first time.
      max_draws: most draws of the noise of a sample.

    Returns:
      (`DrawnBatch`, the number of noises drawn again, whether all are finite, or were not checked).
    """
    index, labels, attempts = placed
    drawn = program(index, labels, attempts)
    num_redrawn = 0
    for _ in range(1, max_draws):
        failed = int((~arrays.fetch(drawn.finite)).sum())
        if not failed:
            break
        num_redrawn += failed
        attempts = _next_attempts(drawn.finite, attempts)
        drawn = _keep_finite(drawn, program(index, labels, attempts))
    return drawn, num_redrawn, max_draws == 1 or arrays.fetch(drawn.finite).all()


@jax.jit
def _next_attempts(finite, attempts):
    return jnp.where(finite, attempts, attempts + 1)


@jax.jit
def _keep_finite(drawn: DrawnBatch, new: DrawnBatch) -> DrawnBatch:
    def keep(old, new):
        return jnp.where(drawn.finite.reshape(-1, *(1,) * (old.ndim - 1)), old, new)

    return jax.tree.map(keep, drawn, new)


@functools.partial(jax.jit, static_argnums=(0, 7))
def sample_batch(
    model: TarFlow, params, calibration, seed, index, labels, attempts, settings
) -> DrawnBatch:
    """Samples a batch in one program, so that processes need not see each other's rows.

    Args:
      model: the flow.
      params: its parameters.
      calibration: how blocks are solved; None where that was not measured.
      seed: seed of the noise.
      index: numbers of the samples, int32 [B].
      labels: int32 [B], -1 for no label.
      attempts: earlier draws of the noise of each sample, int32 [B].
      settings: items of a dict with `denoise_std`, `certify` and arguments of `sample`.

    Returns:
      images [B, H, W, C], whether each is finite [B], and, if certified, residual and resolved [B].
    """
    noise = draw_noise(model.image_shape, jax.random.key(seed), index, attempts)
    return sample_from_noise(
        model, params, noise, labels, calibration=calibration, **dict(settings)
    )


def sample_from_noise(
    model: TarFlow, params, noise, labels, *, denoise_std: float, certify: bool, **settings
) -> DrawnBatch:
    """Maps noise [B, H, W, C] to samples, denoised ones if asked; see `sample_batch`."""
    images = sample(
        *(model, params, noise, labels),
        return_residual=certify,
        return_resolved=certify,
        **settings,
    )
    images, *certificate = images if certify else (images, None, None)
    if denoise_std:
        images = denoise(model, params, images, labels, noise_std=denoise_std)
    return DrawnBatch(images, jnp.isfinite(images).all(axis=(1, 2, 3)), *certificate)


@jax.named_scope('noise')
def draw_noise(image_shape, key, index, attempts):
    """Standard normal noise [B, H, W, C], each a function of the key and its numbers [B] alone."""

    def draw(index, attempt):
        first_key = jax.random.fold_in(key, index)
        other_key = jax.random.fold_in(first_key, attempt)
        return jax.random.normal(
            jnp.where(attempt == 0, first_key, other_key), image_shape, jnp.float32
        )

    return jax.vmap(draw)(index, attempts)
