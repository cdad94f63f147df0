"""Many samples, batch by batch."""

import functools
from collections.abc import Iterator

import jax
import numpy as np

from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.parallel import distributed
from tarflow_jax.parallel.mesh import batch_shares
from tarflow_jax.sampling.denoise import denoise
from tarflow_jax.sampling.sequential import sample


def even_labels(num_samples: int, num_classes: int) -> np.ndarray | None:
    """Labels that run evenly through the classes, 0, 1, ..., 0, 1, ...; None without classes."""
    if not num_classes:
        return None
    return np.arange(num_samples, dtype=np.int32) % num_classes


def generate(
    model: TarFlow,
    params,
    mesh,
    *,
    num_samples: int,
    batch_size: int,
    seed: int,
    denoise_std: float = 0.0,
    **how,
) -> Iterator[np.ndarray]:
    """Samples of evenly spread labels, in batches [B, H, W, C], float32, in all `num_samples`.

    Every process has to run through all batches, its devices drawing their share of each; the
    main one alone gets them, the others get batches of no images.

    Args:
      model: the flow.
      params: its parameters.
      mesh: the devices, of all processes.
      num_samples: how many.
      batch_size: samples at a time; does not change them.
      seed: of the noise. The noise of a sample depends on (seed, index of the sample) only.
      denoise_std: of the noise that a score step removes from the samples; 0 for no such step.
      **how: guidance and temperatures as of `sample`.
    """
    shares = batch_shares(mesh)
    batch_size = -(-min(batch_size, num_samples) // shares) * shares
    rows = distributed.local_rows(mesh, batch_size)
    for start in range(0, num_samples, batch_size):
        index = np.arange(start, start + batch_size, dtype=np.int32)
        labels = index % model.num_classes if model.num_classes else np.full_like(index, -1)
        index, labels = distributed.put_rows((index[rows], labels[rows]), mesh, batch_size, rows)
        images = _draw(model, params, seed, index, labels, denoise_std, tuple(how.items()))
        images = distributed.fetch(images)
        yield images[: num_samples - start if distributed.is_main() else 0]


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _draw(model, params, seed, index, labels, denoise_std, how):
    """One program, so that no process needs to see the arrays that all of them share."""
    noise = _noise(model.image_shape, seed, index)
    images = sample(model, params, noise, labels, **dict(how))
    if denoise_std:
        images = denoise(model, params, images, labels, noise_std=denoise_std)
    return images


def _noise(image_shape, seed, index):
    key = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), image_shape))(index)
