"""Reference statistics of a config's training images, computed once and stored with the data."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging

import tarflow_jax
from tarflow_jax.build import Experiment
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation import metrics, quality, references
from tarflow_jax.evaluation.features import Features
from tarflow_jax.evaluation.references import Reference
from tarflow_jax.files import make_writable, remove_unfinished
from tarflow_jax.parallel import distributed, rules
from tarflow_jax.parallel.mesh import padded_batch_size
from tarflow_jax.progress import count_progress
from tarflow_jax.stopping import RESTARTS, Stop


def prepare_fid(experiment: Experiment, stop: Stop) -> None:
    """Computes the statistics that evaluating an experiment needs, and says where they are.

    Args:
      experiment: see `build.Experiment`.
      stop: receives the signals.

    Raises:
      InputError: the data or the weights of Inception are not there.
    """
    families = {
        family: make_features(experiment.config, experiment.mesh, metrics.FAMILIES[family])
        for family in metrics.families(metrics.metric_names(experiment.config)) or ['inception']
    }
    with rules.activation_sharding(experiment.mesh):
        for family, features in families.items():
            reference = DataReference(family, features, experiment)
            reference.ensure(functools.partial(stop.check, RESTARTS), log=print)


def make_features(config, mesh, names) -> Features:
    """Returns the `Features` of these names, with the settings of a config."""
    return Features(
        names,
        mesh,
        preprocessing=config.evaluate.preprocessing,
        weights=config.evaluate.inception_weights,
    )


class DataReference:
    """The statistics of the training split of a data set, in the data folder.

    Args:
      family: the family of features, a key of `metrics.FAMILIES`.
      features: computes them.
      experiment: whose data set it is.
    """

    def __init__(self, family: str, features: Features, experiment: Experiment):
        config, dataset = experiment.config, experiment.dataset
        self._features = features.subset(metrics.FAMILIES[family])
        self._dataset = dataset
        self._mesh = experiment.mesh
        self._batch_size = config.evaluate.batch_size
        self._flip = config.evaluate.reference_flip
        self._split_name = config.data.train_split
        self._split = dataset.split(self._split_name, 'data.train_split')
        if len(self._split) < metrics.MIN_IMAGES:
            raise InputError(
                f'reference statistics need at least {metrics.MIN_IMAGES} images; '
                f'{dataset.name}/{self._split_name} has {len(self._split)}.'
            )
        words = [file_name(dataset.name), file_name(self._split_name)]
        words += ['flipped'] if self._flip else []
        name = '-'.join([*words, features.settings.get('preprocessing', family)])
        self.path = Path(config.data.dir).expanduser() / 'references' / f'{name}.npz'

    def metadata(self) -> dict[str, Any]:
        """Returns what the statistics are of, and how they are made."""
        return {
            'dataset': self._dataset.name,
            'split': self._split_name,
            'num_images': len(self._split),
            'image_shape': list(self._dataset.image_shape),
            'fingerprint': quality.fingerprint(self._split),
            'flip': self._flip,
            **self._features.settings,
        }

    def ensure(self, before_batch: Callable[[], object], log=lambda text: None) -> Reference | None:
        """Returns the statistics, computed if the file lacks them; None except in the main process.

        Collective: every process must call it. Calls `before_batch` before each batch.
        """
        wanted = self.metadata()
        reference = self._read(wanted) if distributed.is_main() else None
        is_there = reference is not None or not distributed.is_main()
        if not distributed.all_true(is_there):
            self._make(wanted, before_batch, log)
            reference = references.read(self.path) if distributed.is_main() else None
        elif reference:
            log(f'{self.path}: reference statistics already exist.')
        return reference

    def _read(self, wanted: dict[str, Any]) -> Reference | None:
        if not self.path.exists():
            return None
        try:
            reference = references.read(self.path)
        except InputError as damage:
            logging.warning('%s It is rebuilt.', damage)
            return None
        changed = [key for key in wanted if reference.metadata.get(key) != wanted[key]]
        if changed:
            logging.warning(
                '%s was made with another %s and is rebuilt.', self.path, ', '.join(changed)
            )
        return None if changed else reference

    def _make(self, wanted: dict[str, Any], before_batch, log) -> None:
        mirrored = ', each also mirrored' if self._flip else ''
        images = f'{len(self._split):,} images of {self._dataset.name}/{self._split_name}{mirrored}'
        if distributed.is_main():
            make_writable(self.path.parent, 'another config.data.dir, or evaluate.reference')
            remove_unfinished(self.path.parent)
            print(f'Computing reference statistics of {images}, only once.', flush=True)
        size = padded_batch_size(self._batch_size, len(self._split), self._mesh)
        with count_progress('images', len(self._split), enabled=distributed.is_main()) as progress:
            reference = quality.measure_split(
                self._split,
                self._dataset.num_levels,
                self._features,
                self._mesh,
                batch_size=self._batch_size,
                flip=self._flip,
                before_batch=progress.before_batch(size, before_batch),
            )
        metadata = {**wanted, 'version': tarflow_jax.__version__}
        if distributed.is_main():
            reference = dataclasses.replace(reference, metadata=metadata)
            references.write(self.path, reference)
            log(f'{self.path}: reference statistics of {images}.')


def file_name(source: str) -> str:
    """Turns a data set or split into a part of a file's name: train[5%:] becomes train_5pct_to."""
    if source.endswith('.npz'):
        digest = hashlib.sha256(str(Path(source).expanduser().resolve()).encode()).hexdigest()
        return f'{file_name(Path(source).stem)}-{digest[:8]}'
    words = source.replace(':', '_to_').replace('%', 'pct')
    return re.sub(r'(?:[^\w-]|_)+', '_', words).strip('_')
