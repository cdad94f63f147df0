"""Samples as files: an array of all of them, and a picture of the first."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from tarflow_jax import capacity, imagefiles
from tarflow_jax.errors import RunError
from tarflow_jax.files import link_atomically, make_writable, remove_unfinished
from tarflow_jax.parallel import distributed, rules
from tarflow_jax.parallel.mesh import padded_batch_size
from tarflow_jax.progress import count_progress
from tarflow_jax.sampling.batches import (
    MAX_DRAWS,
    REMEDIES,
    host_images,
    sample_batches,
)
from tarflow_jax.sampling.labels import captions, spread_labels
from tarflow_jax.stopping import RESTARTS, Stop

GRID_SAMPLES = 100  # at most, in a picture
_CHANGE_NO_SAMPLE = ('num_samples', 'batch_size', 'method', 'tolerance', 'certify')


def write_samples(
    model,
    params,
    mesh,
    folder: Path,
    stop: Stop,
    sampling,
    name: str = '',
    class_names: Sequence[str] = (),
) -> None:
    """Draws samples into `samples.npz`, with labels if there are classes, and `samples.png`.

    With `certify` it says how exact they are, and keeps each sample's residual in `samples.npz`.

    Every process draws its share; the main one writes.

    Args:
      model: the flow.
      params: its parameters.
      mesh: the devices.
      folder: the folder for the files, made if it is missing.
      stop: receives the signals.
      sampling: arguments of `sample_batches`.
      name: keeps both as `samples_<name>`, too, where the next samples do not replace them.
      class_names: column headings of the picture, instead of class numbers.

    Raises:
      InputError: the samples do not fit the memory or the disk, or the folder cannot be written to.
      RunError: no sample is finite.
    """
    if distributed.is_main():
        make_writable(folder)
        remove_unfinished(folder)
        size = math.prod(model.image_shape)
        capacity.check_samples(
            *('sample.num_samples', sampling['num_samples']),
            memory_each=2 * size + 16,
            disk_each=size + 4,
            folder=folder,
        )
    images, is_finite, certificates = [], [], []
    batch_size = padded_batch_size(sampling['batch_size'], sampling['num_samples'], mesh)
    progress = count_progress('samples', sampling['num_samples'], enabled=distributed.is_main())
    with rules.activation_sharding(mesh), progress:
        batches = sample_batches(
            *(model, params, mesh),
            must_be_finite=False,
            before_batch=progress.before_batch(batch_size, lambda: stop.check(RESTARTS)),
            **sampling,
        )
        for batch in batches:
            pixels = host_images(batch)
            if not distributed.is_main():
                continue
            images.append(imagefiles.to_uint8(pixels))
            is_finite.append(np.isfinite(pixels).all(axis=(1, 2, 3)))
            if batch.residual is not None and batch.resolved is not None:
                certificates.append((batch.residual[batch.mask], batch.resolved[batch.mask]))
    if not distributed.is_main():
        return
    check_finite(np.concatenate(is_finite))
    images = np.concatenate(images)
    labels = spread_labels(sampling['labels'], len(images), model.num_classes, sampling['seed'])
    arrays = {'arr_0': images} if labels is None else {'arr_0': images, 'arr_1': labels}
    if sampling['certify']:
        arrays['residual'], resolved = map(np.concatenate, zip(*certificates, strict=True))
        print(certificate(arrays['residual'], resolved, sampling['tolerance']))
    imagefiles.write_npz(folder / 'samples.npz', **arrays)
    imagefiles.write_png(folder / 'samples.png', grid(images, sampling, model, class_names))
    for suffix in ('npz', 'png') if name else ():
        link_atomically(folder / f'samples.{suffix}', folder / f'samples_{name}.{suffix}')


def certificate(residual: np.ndarray, resolved: np.ndarray, tolerance: float) -> str:
    """A sentence about the residuals of samples [N], and those that were solved again [N]."""
    return (
        f'The largest residual is {residual.max():.1e} (tolerance {tolerance:g}); '
        f'{np.count_nonzero(resolved)} of {len(resolved)} samples were solved again token by token.'
    )


def grid(images: np.ndarray, sampling, model, class_names: Sequence[str]) -> np.ndarray:
    """A picture of the first samples, uint8 [N, H, W, C], in columns by label if labels repeat."""
    words = captions(sampling['labels'], model.num_classes, class_names)
    return imagefiles.image_grid(images[:GRID_SAMPLES], words if len(words) <= len(images) else ())


def name_of(settings: Mapping[str, Any]) -> str:
    """A name for samples of other settings than the config's: 'guidance1_labels-3-3-7'.

    How many there are, and how they are computed, is left out: that changes no sample.
    """
    words = []
    for key, value in sorted(settings.items()):
        if key not in _CHANGE_NO_SAMPLE:
            text = f'-{value}' if isinstance(value, str | bool) else f'{value:g}'
            words.append(key + re.sub(r'[^\w.+-]+', '-', text))
    return '_'.join(words)


def check_finite(is_finite: np.ndarray) -> None:
    """Says how many samples are not finite; raises RunError if none is."""
    failed = np.count_nonzero(~is_finite)
    if not failed:
        return
    problem = f'{failed} of {len(is_finite)} samples are not finite after {MAX_DRAWS} draws of '
    problem += f'their noise. {REMEDIES}'
    if failed == len(is_finite):
        raise RunError(f'{problem} Nothing was written.')
    logging.warning('%s They are grey.', problem)
