"""The part of an evaluation that draws samples, or takes given ones, and measures them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from tarflow_jax import capacity, imagefiles
from tarflow_jax.build import Experiment
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation import metrics, quality, references
from tarflow_jax.evaluation.features import to_levels
from tarflow_jax.evaluation.inception import FEATURES
from tarflow_jax.evaluation.prepare_fid import DataReference, make_features
from tarflow_jax.evaluation.preprocessing import PREPROCESSING
from tarflow_jax.evaluation.references import Reference
from tarflow_jax.evaluation.sample_store import SampleStore
from tarflow_jax.files import make_writable, sha256_of
from tarflow_jax.likelihood.scores import scored_batches
from tarflow_jax.parallel import arrays, distributed
from tarflow_jax.parallel.mesh import padded_batch_size
from tarflow_jax.progress import count_progress
from tarflow_jax.sampling.batches import sample_batches
from tarflow_jax.sampling.labels import spread_labels
from tarflow_jax.sampling.parallel import Calibration
from tarflow_jax.stopping import RESUMES, Stop, Stopped

_COPY_BATCH_SIZE = 1024  # samples at a time


def check(experiment: Experiment, names: list[str]) -> None:
    """Raises InputError if the config alone shows that samples cannot be measured."""
    settings, channels = experiment.config.evaluate, experiment.model.image_shape[2]
    problem = metrics.sample_count_error(names, settings.num_samples)
    if problem and not settings.samples:
        raise InputError(f'evaluate.num_samples {problem}')
    if channels not in (1, 3):
        raise InputError(
            f'samples have {channels} channels; images of one or three can be measured. '
            'Take the metrics of samples out of evaluate.metrics.'
        )
    PREPROCESSING.check('evaluate.preprocessing', settings.preprocessing)


class SampleScores:
    """Metrics of samples against a reference, which is made if there is none.

    Args:
      experiment: the experiment to evaluate.
      params: the parameters of its model; None if samples are given.
      params_sha256: a hash of the parameters.
      calibration: how samples are drawn, see `sampling.calibrate`; None for token by token.
      workdir: the folder whose samples/ gets the samples.
      stop: receives the signals.
      names: the metrics to compute, keys of `metrics.SAMPLE_METRICS`.

    Attributes:
      names: the metrics.

    Raises:
      InputError: the samples cannot be drawn or measured like that.
    """

    def __init__(
        self,
        experiment: Experiment,
        params,
        params_sha256: str | None,
        calibration: Calibration | None,
        workdir: Path,
        stop: Stop,
        names: list[str],
    ):
        self._experiment = experiment
        self._config, self._mesh = experiment.config, experiment.mesh
        self._settings = experiment.config.evaluate
        self._model, self._params, self._params_sha256 = experiment.model, params, params_sha256
        self._calibration = calibration
        self._folder = workdir / 'samples'
        self._stop = stop
        self.names = names
        check(experiment, names)
        settings = self._settings
        self._loaded_samples = self._load_samples() if settings.samples else None
        self._sampling: dict[str, Any] = {}
        self._num_samples = (
            len(self._loaded_samples) if self._loaded_samples else settings.num_samples
        )
        if not self._loaded_samples:
            self._sampling = {
                **experiment.sampling,
                'num_samples': settings.num_samples,
                'labels': settings.labels,
            }
        if problem := metrics.sample_count_error(names, self._num_samples):
            raise InputError(f'the images in {settings.samples} {problem}')
        self._features = {
            family: make_features(self._config, self._mesh, kinds)
            for family, kinds in metrics.families(names).items()
        }
        self._check_reference()
        self._sample_store = None if self._loaded_samples else self._open_sample_store()
        self._references: dict[str, Reference] = {}
        self._warnings: list[str] = []  # that belong with the scores

    @property
    def _windows(self) -> tuple[int, ...] | None:
        """Tokens that are solved together, by block, if a calibration says so."""
        return self._calibration.windows if self._calibration else None

    def prepare(self) -> None:
        """Reads or makes the references, and warns where numbers of images are too few for them."""
        references = {family: self._reference(family) for family in self._features}
        self._references = {family: r for family, r in references.items() if r}
        for name in self.names if distributed.is_main() else ():
            family = metrics.FAMILY.get(metrics.SAMPLE_METRICS[name][0])
            if family in self._references:
                self._warnings += quality.warnings_of_few(
                    name, self._references[family], self._num_samples
                )
        for warning in self._warnings:
            logging.warning('%s', warning)

    def _load_samples(self):
        """The samples of `evaluate.samples`."""
        settings, model = self._settings, self._model
        if not settings.samples.endswith('.npz'):
            raise InputError(
                f'evaluate.samples={settings.samples} must be a file .npz of images; a data '
                'set is measured as a reference, with --mode=prepare_fid.'
            )
        given = open_dataset(settings.samples, self._config.data.dir)
        if given.image_shape != model.image_shape:
            raise InputError(
                f'the images of evaluate.samples={settings.samples} have the shape '
                f'{given.image_shape}, those of the config {model.image_shape}: give samples of '
                'that shape, or the --config of their data set.'
            )
        return given.split('train')

    def _check_reference(self) -> None:
        """Checks the reference even if no metric uses it, so that a mistake is not missed."""
        path = self._settings.reference
        if not path or metrics.needs_reference(self.names, 'inception'):
            return
        references.read(path)
        if distributed.is_main():
            logging.warning(
                'evaluate.reference=%s is for fid, sfid, precision and recall: %s use the '
                'training split.',
                *(path, ', '.join(self.names)),
            )

    def _open_sample_store(self) -> SampleStore:
        """The samples that an interrupted evaluation has drawn."""
        settings, folder = self._settings, self._folder
        if distributed.is_main():
            make_writable(folder)
            size = int(np.prod(self._model.image_shape))
            keeps_rows = any(metrics.SAMPLE_METRICS[name][1] == 'neighbours' for name in self.names)
            capacity.check_samples(
                'evaluate.num_samples',
                self._num_samples,
                memory_each=16 + keeps_rows * 8 * FEATURES['pool'],
                disk_each=size * (1 + settings.save_samples),
                folder=folder,
            )
        sampling = dict(self._sampling)
        del sampling['num_samples'], sampling['batch_size']  # which change no sample
        identity = {
            'params_sha256': self._params_sha256,
            'model': self._config.model.to_dict(),
            'sample': sampling,
            'windows': self._windows,
            'quantization': settings.quantization,
        }
        store = SampleStore(folder, identity, self._model.image_shape)
        if store.count and distributed.is_main():
            print(f'{store.count:,} samples are drawn already.', flush=True)
        return store

    def _reference(self, family: str) -> Reference | None:
        """What the family's features are compared with; of the main process, others get None."""
        features, path = self._features[family], self._settings.reference
        if family == 'inception' and path:
            reference = references.read(path)
            references.check(reference, features.settings, self._model.image_shape)
            return quality.with_missing_features(
                *(reference, self.names, features, self._mesh), self._stop.check
            )
        if not metrics.needs_reference(self.names, family):
            return None
        reference = DataReference(family, features, self._experiment)
        return reference.ensure(self._stop.check)

    def scores(self) -> dict[str, float]:
        """Returns the scores by the name of the metric, in the main process; {} in the others.

        Samples that an interrupted evaluation has drawn are measured again, which is quick.
        """
        measured = quality.measure(
            self._drawn_batches(self._sample_store)
            if self._sample_store
            else self._measured_batches(),
            list(self._features.values()),
            self._mesh,
            num_images=self._num_samples,
            keep=lambda index: np.ones(len(index), bool),
        )
        if not distributed.is_main():
            return {}
        with self._stop.immediate(RESUMES):  # whatever was drawn is on the disk
            if self._sample_store and self._settings.save_samples:
                self._save(self._sample_store)
            return quality.score(measured, self._references, self.names)

    def _measured_batches(self) -> Iterator[quality.Batch]:
        batch_size = self._settings.batch_size
        check = self._stop.check
        for batch in scored_batches(self._loaded_samples, self._mesh, batch_size, check):
            yield quality.Batch(batch['image'], arrays.fetch(batch['index']), batch['mask'])

    def _drawn_batches(self, store: SampleStore) -> Iterator[quality.Batch]:
        """Yields the samples drawn before an interruption, then draws the remaining ones."""
        total = self._num_samples
        first = min(store.count, total)
        batch_size = padded_batch_size(self._sampling['batch_size'], total, self._mesh)
        for start in range(0, first, batch_size):
            self._stop.check()
            yield self._read_batch(store, start, min(start + batch_size, first), batch_size)
        quantization = self._settings.quantization
        batches = sample_batches(
            *(self._model, self._params, self._mesh),
            first=first,
            before_batch=self._stop.check,
            calibration=self._calibration,
            **self._sampling,
        )
        progress = count_progress('samples', total, first, enabled=distributed.is_main())
        try:
            with progress:
                for batch in batches:
                    images = to_levels(batch.images, quantization)
                    store.add(arrays.fetch(images)[batch.mask], batch.num_redrawn)
                    progress.update(min(store.count, total))
                    yield quality.Batch(images, batch.index, batch.mask)
        except Stopped:  # in all processes, of which none may end before the main one has written
            store.write()
            distributed.all_true(True)
            raise
        finally:
            store.write()

    def _read_batch(self, store: SampleStore, start: int, stop: int, size: int) -> quality.Batch:
        mesh = self._mesh
        images = np.zeros((size, *self._model.image_shape), np.uint8)
        images[: stop - start] = arrays.broadcast_array(store.read(start, stop))
        index = np.arange(start, start + size, dtype=np.int32)
        rows = arrays.local_rows(mesh, size)
        return quality.Batch(arrays.put_rows(images[rows], mesh, size), index, index < stop)

    def _save(self, store: SampleStore) -> None:
        """Makes `samples/evaluated.npz`, as ADM's sample batches are."""
        total = self._num_samples
        labels = spread_labels(
            self._sampling['labels'], total, self._model.num_classes, self._sampling['seed']
        )
        path = self._folder / 'evaluated.npz'
        with imagefiles.npz_writer(path, (total, *self._model.image_shape), labels) as write:
            for start in range(0, total, _COPY_BATCH_SIZE):
                write(store.read(start, min(start + _COPY_BATCH_SIZE, total)))

    def finish(self) -> None:
        """Removes what an interrupted evaluation would resume from, unless a larger one drew it."""
        if self._sample_store and self._sample_store.count <= self._num_samples:
            self._sample_store.remove()

    def details(self) -> dict[str, Any]:
        """Returns what was measured, with which settings, and the references."""
        source: dict[str, Any] = {}
        if self._loaded_samples:
            path = self._settings.samples
            source = {'file': path, 'file_sha256': sha256_of(path)}
        if self._sample_store:
            source = {
                **self._sampling,
                'windows': self._windows,
                'quantization': self._settings.quantization,
                'redrawn': self._sample_store.num_redrawn,
            }
        for features in self._features.values():
            source |= features.settings
        references = {
            family: {'path': reference.path, 'sha256': reference.sha256, **reference.metadata}
            for family, reference in self._references.items()
        }
        source |= {'num_samples': self._num_samples, 'references': references}
        return {'samples': {**source, 'warnings': self._warnings}}
