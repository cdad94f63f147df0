"""The mean likelihood of a whole split, every image exactly once."""

import contextlib
import functools
import math

import jax
import numpy as np

from tarflow_jax.data import pipeline
from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.parallel import distributed
from tarflow_jax.parallel.mesh import batch_shares
from tarflow_jax.training.objective import Noise


def evaluate(
    model: TarFlow, params, split, noise: Noise, mesh, *, batch_size: int, num_draws: int, seed: int
) -> dict[str, float]:
    """Mean negative log-likelihood of a split's images given their labels.

    Args:
      model: the flow.
      params: its parameters.
      split: a split of a data set.
      noise: what turns its levels into pixels.
      mesh: the devices, of all processes; every process gets the same result.
      batch_size: images at a time; does not change the result.
      num_draws: draws of the noise for every image, over which the mean is taken.
      seed: of the noise. The noise of an image depends on (seed, draw, index of the image) only.

    Returns:
      nats_per_dim, constant included; bits_per_dim, the same per bin, see `Noise.bits_per_dim`.
    """
    score = functools.partial(_negative_log_likelihood, model, noise)
    total = 0.0
    for batch in scored_batches(split, mesh, batch_size):
        for draw in range(num_draws):
            nats = distributed.fetch(score(params, batch, seed, draw))
            total += np.sum(nats, where=batch['mask'], dtype=np.float64)
    nats_per_dim = total / (len(split) * num_draws * math.prod(model.image_shape))
    return {
        'nats_per_dim': float(nats_per_dim),
        'bits_per_dim': float(noise.bits_per_dim(nats_per_dim)),
    }


def scored_batches(split, mesh, batch_size: int):
    """Batches of a split, padded to a size the mesh can share, every process reading its rows.

    Yields:
      'image' [B, H, W, C], 'label' [B] and 'index' [B], that of the row in the split, over the
      mesh; and 'mask' [B], NumPy, of which rows are examples.
    """
    shares = batch_shares(mesh)
    batch_size = -(-min(batch_size, len(split)) // shares) * shares
    rows = distributed.local_rows(mesh, batch_size)
    batches = pipeline.eval_batches(split, batch_size=batch_size, rows=rows)
    with contextlib.closing(batches):
        for i, batch in enumerate(batches):
            index = np.arange(i * batch_size, (i + 1) * batch_size, dtype=np.int32)
            local = {'image': batch['image'], 'label': batch['label'], 'index': index[rows]}
            placed = distributed.put_rows(local, mesh, batch_size, rows)
            yield {**placed, 'mask': index < len(split)}


def noisy_images(noise: Noise, batch, seed, draw):
    """Pixels of a batch [B, H, W, C]; the noise of a row follows from (seed, draw, its index)."""
    key = jax.random.fold_in(jax.random.key(seed), draw)

    def add(index, levels):
        return noise.add(jax.random.fold_in(key, index), levels)

    return jax.vmap(add)(batch['index'], batch['image'])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _negative_log_likelihood(model, noise, params, batch, seed, draw):
    images = noisy_images(noise, batch, seed, draw)
    log_prob = model.apply({'params': params}, images, batch['label'], method='log_prob')
    return -log_prob
