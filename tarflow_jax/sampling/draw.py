"""Draws any number of images from a key, batch by batch."""

from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from tarflow_jax.flow.inputs import as_labels
from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.sampling.batches import MAX_DRAWS, draw_noise, redraw, sample_from_noise
from tarflow_jax.sampling.guidance import GUIDANCE_KEYS, Guidance
from tarflow_jax.values import Boolean, Integer

NUMBER = Integer(1)


def draw(
    model: TarFlow,
    params,
    key,
    labels,
    *,
    batch_size: int = 100,
    denoise_std: float = 0.0,
    progress: bool = False,
    return_residual: bool = False,
    return_resolved: bool = False,
    **settings,
) -> Any:
    """Draws an image for each label.

    Args:
      model: the flow.
      params: its parameters.
      key: a key of `jax.random.key`. The noise of an image depends only on the key and on the
        index of its label. For `jax.random.key(seed)`, it is the noise of `--mode=sample` with the
        same seed.
      labels: int [N], -1 for no label.
      batch_size: images at a time; does not change them, in parallel up to the tolerance.
      denoise_std: noise that a score step removes, see `denoise`; 0 for no step.
      progress: whether to show a bar.
      return_residual: whether to also measure how exact each image is; see `sample`.
      return_resolved: with return_residual, whether to also return which images were solved again.
      **settings: guidance, temperatures, method, tolerance and calibration, see `sample`.

    Returns:
      images [N, H, W, C], float32. The noise of a sample that is not finite is drawn again, ten
      times at most; what is not finite even then is counted in a warning. With return_residual,
      (images, residual [N]); with return_resolved, (images, residual [N], resolved bool [N]).

    Raises:
      InputError: the model cannot serve the labels or the settings.
    """
    labels = as_labels(labels, len(labels), model.num_classes)
    guidance = {key: settings[key] for key in GUIDANCE_KEYS if key in settings}
    Guidance.checked(model.num_classes, **guidance).check_labels(labels, model.num_classes)
    batch_size = min(NUMBER.check('batch_size', batch_size), len(labels))
    Boolean().check('return_resolved', return_resolved)
    batches, num_nonfinite = [], 0
    settings |= dict(denoise_std=denoise_std, certify=return_residual)

    def program(index, labels, attempts):
        noise = _noise(model.image_shape, key, index, attempts)
        return sample_from_noise(model, params, noise, labels, **settings)

    for first in _with_progress_bar(range(0, len(labels), batch_size), progress):
        index = jnp.arange(first, first + batch_size, dtype=jnp.int32)  # beyond the last, too
        batch_labels = labels[jnp.minimum(index, len(labels) - 1)]
        drawn, *_ = redraw(program, (index, batch_labels, jnp.zeros_like(index)))
        num_nonfinite += int((~drawn.finite & (index < len(labels))).sum())
        batches.append((drawn.images, drawn.residual, drawn.resolved))
    if num_nonfinite:
        logging.warning(
            '%d samples are not finite after %d draws of their noise. Lower the guidance or the '
            'temperature, sample in float32, or take an earlier checkpoint: the model may have '
            'diverged.',
            *(num_nonfinite, MAX_DRAWS),
        )
    drawn = jax.tree.map(lambda *parts: jnp.concatenate(parts)[: len(labels)], *batches)
    if not return_residual:
        return drawn[0]
    return drawn if return_resolved else drawn[:2]


_noise = jax.jit(draw_noise, static_argnums=0)


def _with_progress_bar(numbers: range, progress: bool):
    """The same numbers, with a progress bar while they are processed."""
    if not progress:
        return numbers
    from rich.console import Console
    from rich.progress import track

    console = Console()
    is_seen = console.is_terminal or console.is_jupyter
    return track(numbers, 'Sampling', console=console, transient=True, disable=not is_seen)
