"""As many images as are wanted from a key, a batch at a time."""

import functools

import jax
import jax.numpy as jnp

from tarflow_jax.flow.inputs import as_labels
from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.sampling.batches import draw_noise
from tarflow_jax.sampling.denoise import denoise
from tarflow_jax.sampling.sample import sample
from tarflow_jax.values import Whole

NUMBER = Whole(1)


def draw(
    model: TarFlow,
    params,
    key,
    labels,
    *,
    batch_size: int = 100,
    denoise_std: float = 0.0,
    progress: bool = False,
    **settings,
):
    """Draws an image for each label.

    Args:
      model: the flow.
      params: its parameters.
      key: a key of `jax.random.key`. The noise of an image depends on the key and on its place
        among the labels alone; of a seed's key it is that of `--mode=sample` with this seed.
      labels: int [N], -1 for no label.
      batch_size: images at a time; does not change them.
      denoise_std: noise that a score step removes, see `denoise`; 0 for no step.
      progress: whether to show a bar.
      **settings: guidance, temperatures, method and calibration, see `sample`.

    Returns:
      images [N, H, W, C], float32.

    Raises:
      InputError: the model cannot serve the labels or the settings.
    """
    labels = as_labels(labels, len(labels), model.num_classes)
    batch_size = min(NUMBER.check('batch_size', batch_size), len(labels))
    images = []
    for first in _counted(range(0, len(labels), batch_size), progress):
        index = jnp.arange(first, first + batch_size, dtype=jnp.int32)  # beyond the last, too
        of_batch = labels[jnp.minimum(index, len(labels) - 1)]
        noise = _noise(model.image_shape, key, index)
        batch = sample(model, params, noise, of_batch, **settings)
        if denoise_std:
            batch = denoise(model, params, batch, of_batch, noise_std=denoise_std)
        images.append(batch)
    return jnp.concatenate(images)[: len(labels)]


@functools.partial(jax.jit, static_argnums=0)
def _noise(image_shape, key, index):
    return draw_noise(image_shape, key, index, jnp.zeros_like(index))


def _counted(numbers: range, progress: bool):
    """The same numbers, with a bar on the screen while they are worked off."""
    if not progress:
        return numbers
    from rich.progress import track

    return track(numbers, 'Sampling', transient=True)
