"""The part of an evaluation that draws samples, or takes given ones, and measures them."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tarflow_jax import experiment, imagefiles
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation import quality, references
from tarflow_jax.evaluation.features import to_levels
from tarflow_jax.evaluation.likelihood import scored_batches
from tarflow_jax.evaluation.prepare_fid import DataReference, features_of
from tarflow_jax.evaluation.references import Reference
from tarflow_jax.evaluation.subject import Subject
from tarflow_jax.files import sha256_of
from tarflow_jax.parallel import distributed, rules
from tarflow_jax.quantities import format_duration
from tarflow_jax.sampling.generate import draw, spread_labels

REPORT_SHARE = 0.1  # of the samples, after which a line tells how far it is

Save = Callable[..., Any]


class OfSamples:
    """Metrics of samples against a reference, which is made if there is none.

    Args:
      subject: what is evaluated; its parameters are loaded unless samples are given.
      names: metrics, keys of `quality.METRICS`.

    Raises:
      InputError: the samples cannot be drawn or measured like that, or the reference is none.
    """

    def __init__(self, subject: Subject, names: list[str]):
        self._subject = subject
        self._names = names
        self._num_redrawn = 0
        asked = subject.config.evaluate
        self._given = self._open_given() if asked.samples else None
        self._how: dict[str, Any] = {}
        if self._given:
            self._num_samples = len(self._given)
        else:
            self._num_samples = asked.num_samples
            how = experiment.how_to_sample(subject.config, subject.model)
            self._how = {**how, 'num_samples': asked.num_samples, 'labels': asked.labels}
        if problem := quality.too_few(names, self._num_samples):
            which = f'the images in {asked.samples}' if self._given else 'evaluate.num_samples'
            raise InputError(f'{which} {problem}')
        if subject.model.image_shape[2] not in (1, 3):
            raise InputError(
                f'samples have {subject.model.image_shape[2]} channels; measured are images of one '
                'or three. Take the metrics of samples out of evaluate.metrics.'
            )
        self._features = {
            family: features_of(subject.config, subject.mesh, kinds)
            for family, kinds in quality.families(names).items()
        }
        with rules.on(subject.mesh):
            found = {family: self._reference(family) for family in self._features}
        self._references = {family: reference for family, reference in found.items() if reference}
        for name in names if distributed.is_main() else ():
            family = quality.FAMILY.get(quality.METRICS[name][0])
            if family in self._references:
                quality.warn_of_few(name, self._references[family], self._num_samples)

    def _open_given(self):
        """The samples of `evaluate.samples`."""
        config, model = self._subject.config, self._subject.model
        if not config.evaluate.samples.endswith('.npz'):
            raise InputError(
                f'evaluate.samples={config.evaluate.samples} must be a file .npz of images; a data '
                'set is measured as a reference, with --mode=prepare_fid.'
            )
        given = open_dataset(config.evaluate.samples, config.data.dir)
        if given.image_shape != model.image_shape:
            raise InputError(
                f'the images of evaluate.samples={config.evaluate.samples} have the shape '
                f'{given.image_shape}, those of the config {model.image_shape}: set '
                'config.model.image_shape.'
            )
        return given.split('train')

    def _reference(self, family: str) -> Reference | None:
        """What the family's features are compared with; of the main process, others get None."""
        subject, features = self._subject, self._features[family]
        path = subject.config.evaluate.reference
        if family == 'inception' and path:
            reference = references.read(path)
            references.check(reference, features.settings, subject.model.image_shape)
            return quality.completed(reference, self._names, features, subject.mesh)
        if not quality.needs_reference(self._names, family):
            return None
        return DataReference(
            family, features, subject.config, subject.dataset, subject.mesh
        ).ensure()

    def scores(self) -> dict[str, float]:
        """By the name of the metric, in the main process; the others get none."""
        with self._saved() as save:
            measured = quality.measure(
                self._measured_batches() if self._given else self._drawn_batches(save),
                list(self._features.values()),
                self._subject.mesh,
                num_images=self._num_samples,
                keep=lambda index: np.ones(len(index), bool),
            )
        if not distributed.is_main():
            return {}
        return quality.score(measured, self._references, self._names)

    def _measured_batches(self) -> Iterator[quality.Batch]:
        batch_size = self._subject.config.evaluate.batch_size
        for batch in scored_batches(self._given, self._subject.mesh, batch_size):
            yield quality.Batch(batch['image'], distributed.fetch(batch['index']), batch['mask'])

    def _drawn_batches(self, save: Save) -> Iterator[quality.Batch]:
        subject = self._subject
        pace = _Pace(self._num_samples)
        for drawn in draw(subject.model, subject.params, subject.mesh, **self._how):
            images = to_levels(drawn.images, subject.config.evaluate.quantization)
            self._num_redrawn += drawn.num_redrawn
            save(images, drawn.mask)
            yield quality.Batch(images, drawn.index, drawn.mask)
            pace.tell(int(drawn.index[-1]) + 1)

    @contextlib.contextmanager
    def _saved(self) -> Iterator[Save]:
        """Gives what takes each batch of images, and makes `samples/evaluated.npz` of them."""
        subject, asked = self._subject, self._subject.config.evaluate
        if self._given or not asked.save_samples:
            yield lambda images, mask: None
            return
        if not distributed.is_main():
            yield lambda images, mask: distributed.fetch(images)
            return
        count, classes = self._num_samples, subject.model.num_classes
        labels = spread_labels(asked.labels, count, classes, self._how['seed'])
        path = subject.workdir / 'samples' / 'evaluated.npz'
        with imagefiles.open_npz(path, (count, *subject.model.image_shape), labels) as write:
            yield lambda images, mask: write(distributed.fetch(images)[mask])

    def details(self) -> dict[str, Any]:
        """What the samples are, how they were measured, and with what they were compared."""
        asked = self._subject.config.evaluate
        source: dict[str, Any] = {}
        if self._given:
            source = {'file': asked.samples, 'file_sha256': sha256_of(asked.samples)}
        if not self._given:
            redrawn = self._num_redrawn
            source = {**self._how, 'quantization': asked.quantization, 'redrawn': redrawn}
        settings = {key: v for f in self._features.values() for key, v in f.settings.items()}
        compared_with = {
            family: {'path': found.path, 'sha256': found.sha256, **found.metadata}
            for family, found in self._references.items()
        }
        return {
            'samples': {
                **source,
                'num_samples': self._num_samples,
                **settings,
                'references': compared_with,
            }
        }


class _Pace:
    """Tells now and then how many samples are drawn."""

    def __init__(self, total: int):
        self._total = total
        self._start = time.perf_counter()
        self._next = total * REPORT_SHARE

    def tell(self, done: int) -> None:
        if not self._next <= done < self._total or not distributed.is_main():
            return
        self._next = done + self._total * REPORT_SHARE
        seconds = time.perf_counter() - self._start
        left = format_duration(seconds / done * (self._total - done))
        print(f'{done:,} of {self._total:,} samples; about {left} more', flush=True)
