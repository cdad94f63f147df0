"""The likelihood of a whole split, every image exactly once."""

import contextlib
import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from tarflow_jax.flow.parts import map_parts
from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.parallel import arrays
from tarflow_jax.parallel.mesh import padded_batch_size


def score_split(
    model: TarFlow,
    params,
    split,
    noise: Noise,
    mesh,
    *,
    batch_size: int,
    num_draws: int,
    seed: int,
    before_batch: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Negative log-likelihood of a split's images given their labels.

    Under uniform noise u, -log p(x + u) bounds the code length of the levels x from above in
    expectation, and the mean over several draws inside the logarithm is a tighter bound:

        -log P(x)  <=  -E log (1/K) sum_k p(x + u_k)  <=  -E log p(x + u)

    Args:
      model: the flow.
      params: its parameters.
      split: a split of a data set.
      noise: the noise that turns its levels into pixels.
      mesh: the devices, of all processes; every process gets the same result.
      batch_size: images at a time; does not change the result.
      num_draws: K, draws of the noise for every image.
      seed: the seed of the noise, which depends on (seed, draw, index of the image) only.
      before_batch: a function that is called before each batch; its exceptions end the evaluation.

    Returns:
      nats_per_dim, the mean over images and draws, constant included; bits_per_dim, the same per
      bin, see `Noise.bits_per_dim`; iw_bits_per_dim, the importance-weighted bound of all draws
      together (for one draw, the same number). The standard errors bits_per_dim_error and
      iw_bits_per_dim_error are those of the means over images; NaN for a single image.
    """
    score = functools.partial(noisy_log_prob, model, noise, params)
    batches = scored_batches(split, mesh, batch_size, before_batch)
    log_probs = _log_probs(score, batches, num_draws, seed)
    dims = math.prod(model.image_shape)
    nats = -log_probs.mean(axis=0) / dims
    bound = (math.log(num_draws) - np.logaddexp.reduce(log_probs, axis=0)) / dims
    return {
        'nats_per_dim': float(nats.mean()),
        'bits_per_dim': float(noise.bits_per_dim(nats.mean())),
        'bits_per_dim_error': _standard_error(nats) / math.log(2),
        'iw_bits_per_dim': float(noise.bits_per_dim(bound.mean())),
        'iw_bits_per_dim_error': _standard_error(bound) / math.log(2),
    }


def as_scored(model: TarFlow) -> TarFlow:
    """The model as it is scored, in float32; loops compile sooner and score as fast."""
    return model.clone(dtype='float32', attention='xla', unroll='none')


def _log_probs(score, batches, num_draws, seed) -> np.ndarray:
    """The log-probability in nats of every draw of every image, float64 [num_draws, images]."""
    log_probs = []
    for batch in batches:
        draws = [arrays.fetch(score(batch, seed, k)) for k in range(num_draws)]
        log_probs.append(np.array(draws, np.float64)[:, batch['mask']])
    return np.concatenate(log_probs, axis=1)


def _standard_error(values: np.ndarray) -> float:
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def scored_batches(split, mesh, batch_size: int, before_batch: Callable[[], object] = lambda: None):
    """Batches of a split, padded to a size the mesh can share, every process reading its rows.

    Calls `before_batch()` before each.

    Yields:
      'image' [B, H, W, C], 'label' [B] and 'index' [B], that of the row in the split, over the
      mesh; and 'mask' [B], NumPy, of which rows are examples.
    """
    from tarflow_jax.data import pipeline  # a model is loaded without Grain

    batch_size = padded_batch_size(batch_size, len(split), mesh)
    rows = arrays.local_rows(mesh, batch_size)
    batches = pipeline.eval_batches(split, batch_size=batch_size, rows=rows)
    with contextlib.closing(batches):
        for i, batch in enumerate(batches):
            before_batch()
            index = np.arange(i * batch_size, (i + 1) * batch_size, dtype=np.int32)
            local = {'image': batch['image'], 'label': batch['label'], 'index': index[rows]}
            placed = arrays.put_rows(local, mesh, batch_size)
            yield {**placed, 'mask': index < len(split)}


def noisy_images(noise: Noise, batch, seed, draw):
    """Pixels of a batch [B, H, W, C]; the noise of a row follows from (seed, draw, its index)."""
    key = jax.random.fold_in(jax.random.key(seed), draw)

    def add(index, levels):
        return noise.add(jax.random.fold_in(key, index), levels)

    return jax.vmap(add)(batch['index'], batch['image'])


@functools.partial(jax.jit, static_argnums=(0, 1))
def noisy_log_prob(model, noise, params, batch, seed, draw):
    """The log-density in nats [B] of a batch of `scored_batches`, see `noisy_images`."""
    images = noisy_images(noise, batch, seed, draw)
    log_prob = functools.partial(model.apply, {'params': params}, method='log_prob')
    return map_parts(log_prob, model, images, batch['label'])
