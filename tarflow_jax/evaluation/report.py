"""`--mode=evaluate`: from a config to figures, and to a file that tells what they are of."""

import contextlib
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tarflow_jax
from tarflow_jax import experiment, imagefiles, loading
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation import quality, references
from tarflow_jax.evaluation.features import QUANTIZATIONS, to_levels
from tarflow_jax.evaluation.likelihood import scored_batches
from tarflow_jax.evaluation.metrics import OF_SAMPLES, OF_SPLITS, metric_names, split_names
from tarflow_jax.evaluation.prepare_fid import DataReference, features_of
from tarflow_jax.evaluation.references import Reference
from tarflow_jax.files import json_text, write_json
from tarflow_jax.parallel import distributed, rules
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.sampling.generate import LABELS, draw, spread_labels
from tarflow_jax.training.checkpoint import fingerprints
from tarflow_jax.training.progress import format_duration

REPORT_SHARE = 0.1  # of the samples, after which a line tells how far it is


def evaluate(config, workdir: Path, checkpoint: str | None = None) -> None:
    """Computes `config.evaluate.metrics`, prints them and writes `workdir/evaluation.json`.

    Args:
      config: see `configs/base.py`.
      workdir: of a training run, whose newest checkpoint is evaluated unless another is given.
      checkpoint: see `tarflow_jax.load`.

    Raises:
      InputError: something was asked that cannot be; nothing was drawn and nothing written.
    """
    start = time.perf_counter()
    check_keys(config)
    evaluation = Evaluation(config, workdir, checkpoint)
    with rules.on(evaluation.mesh):
        scores = evaluation.of_splits() | evaluation.of_samples()
    if not distributed.is_main():
        return
    write_json(workdir / 'evaluation.json', {**scores, **evaluation.details})
    for name, value in scores.items():
        print(f'{name:28} {value:.4f}')
    print(f'in {format_duration(time.perf_counter() - start)}: {workdir}/evaluation.json')


def check_keys(config) -> None:
    """Raises InputError for values under which an evaluation makes no sense."""
    asked = config.evaluate
    metric_names(config)
    experiment.check_at_least_one(config, 'evaluate', 'batch_size', 'num_draws', 'num_samples')
    for key, allowed in ('labels', LABELS), ('quantization', QUANTIZATIONS):
        if asked[key] not in allowed:
            raise InputError(
                f'evaluate.{key} must be one of {", ".join(allowed)}; got {asked[key]!r}.'
            )
    if 'iw_bits_per_dim' in metric_names(config) and config.noise.type != 'uniform':
        raise InputError(
            'evaluate.metrics names iw_bits_per_dim, a bound on the code length of 8-bit images, '
            f"which takes noise.type='uniform'; this model has {config.noise.type!r}. Take it out."
        )
    if not split_names(asked.splits):
        raise InputError(
            'evaluate.splits must name a split of the data set, such as test; got none.'
        )


class Evaluation:
    """What an evaluation is made of; raises InputError before any time is spent.

    Attributes:
      mesh: the devices.
      details: what the figures are of and how they came about, for the report.
    """

    def __init__(self, config, workdir: Path, checkpoint: str | None):
        self.config = config
        self.workdir = workdir
        self.mesh = make_mesh(**config.mesh)
        names = metric_names(config)
        self.names_of_splits = [name for name in names if name in OF_SPLITS]
        self.names_of_samples = [name for name in names if name in OF_SAMPLES]
        self.model = experiment.make_model(config)
        self.dataset: Any = None
        self.params: Any = None
        self.details: dict[str, Any] = {
            'version': tarflow_jax.__version__,
            'config_sha256': hashlib.sha256(json_text(config.to_dict()).encode()).hexdigest(),
        }
        self.check_classes()
        if self.names_of_splits or not config.evaluate.samples:
            self.load(experiment.what_to_load(workdir, checkpoint))
        if self.names_of_splits:
            self.open_data()
            self.splits = {n: self.dataset.split(n) for n in split_names(config.evaluate.splits)}
        if self.names_of_samples:
            self.prepare_samples()

    def check_classes(self) -> None:
        needs_classes = {'accuracy', 'cross_entropy'} & set(self.names_of_splits)
        if needs_classes and not self.model.num_classes:
            raise InputError(
                'evaluate.metrics names accuracy or cross_entropy, and the model has no classes '
                '(model.num_classes=0): it cannot classify. Take them out.'
            )

    def load(self, path) -> None:
        self.model, self.params = loading.load_for(self.config, path, self.mesh)
        loading.warn_of_other_noise(self.config, path)
        prints = json_text(fingerprints(self.params))
        self.details |= {
            'checkpoint': str(path),
            'params_sha256': hashlib.sha256(prints.encode()).hexdigest(),
        }

    def open_data(self) -> None:
        if self.dataset is None:
            self.dataset = experiment.open_data(self.config, self.model)

    def of_splits(self) -> dict[str, float]:
        """Scores of whole splits by 'split/metric', in float32 whatever the model trained in."""
        if not self.names_of_splits:
            return {}
        asked = self.config.evaluate
        model = self.model.clone(dtype='float32', attention='xla')
        noise = experiment.make_noise(self.config, self.dataset)
        found: dict[str, float] = {}
        for split_name, split in self.splits.items():
            scores: dict[str, float] = {}
            for function in dict.fromkeys(OF_SPLITS[name] for name in self.names_of_splits):
                scores |= function(
                    model,
                    self.params,
                    split,
                    noise,
                    self.mesh,
                    batch_size=asked.batch_size,
                    num_draws=asked.num_draws,
                    seed=asked.seed,
                )
            for name in self.names_of_splits:
                found[f'{split_name}/{name}'] = scores[name]
                if f'{name}_error' in scores:
                    found[f'{split_name}/{name}_error'] = scores[f'{name}_error']
        self.details['splits'] = {
            'dataset': self.dataset.name,
            'num_images': {name: len(split) for name, split in self.splits.items()},
            'noise': {'type': self.config.noise.type, 'std': self.config.noise.std},
            'num_draws': asked.num_draws,
            'seed': asked.seed,
            'dtype': 'float32',
        }
        return found

    def prepare_samples(self) -> None:
        """Gets ready all that measuring samples takes, but for the samples."""
        asked = self.config.evaluate
        self.num_samples = asked.num_samples
        self.given = None
        if asked.samples:
            self.given = open_dataset(asked.samples, self.config.data.dir)
            if self.given.image_shape != self.model.image_shape:
                raise InputError(
                    f'the images of evaluate.samples={asked.samples} have the shape '
                    f'{self.given.image_shape}, those of the config {self.model.image_shape}: '
                    'set config.model.image_shape.'
                )
            self.num_samples = len(self.given.split('train'))
        else:
            self.how = experiment.how_to_sample(self.config, self.model)
            self.how |= {'num_samples': self.num_samples, 'labels': asked.labels}
        if problem := quality.too_few(self.names_of_samples, self.num_samples):
            raise InputError(f'evaluate.num_samples {problem}')
        self.features = {
            family: features_of(family, self.config, self.mesh, extra)
            for family, extra in quality.families(self.names_of_samples).items()
        }
        with rules.on(self.mesh):
            self.references = {family: self.reference(family) for family in self.features}

    def reference(self, family: str) -> Reference | None:
        """What the family's features are compared with; of the main process, others get None."""
        features = self.features[family]
        path = self.config.evaluate.reference
        if family == 'inception' and path:
            reference = references.read(path)
            references.check(reference, features.settings, self.model.image_shape)
            return quality.completed(reference, self.names_of_samples, features, self.mesh)
        if not quality.needs_reference(self.names_of_samples, family):
            return None
        self.open_data()
        return DataReference(family, features, self.config, self.dataset, self.mesh).ensure()

    def of_samples(self) -> dict[str, float]:
        """Metrics of samples, which are drawn unless they are given."""
        if not self.names_of_samples:
            return {}
        self.num_redrawn = 0
        with self.saved_samples() as save:
            measured = quality.measure(
                self.batches(save),
                list(self.features.values()),
                self.mesh,
                num_images=self.num_samples,
                keep=lambda index: np.ones(len(index), bool),
            )
        self.details['samples'] = self.describe_samples()
        if not distributed.is_main():
            return {}
        return quality.score(measured, self.references, self.names_of_samples, self.num_samples)

    def batches(self, save) -> Iterator[quality.Batch]:
        """The samples as 8-bit images, batch by batch."""
        asked = self.config.evaluate
        if self.given:
            for batch in scored_batches(self.given.split('train'), self.mesh, asked.batch_size):
                yield quality.Batch(
                    batch['image'], distributed.fetch(batch['index']), batch['mask']
                )
            return
        levels = self.config.evaluate.quantization
        pace = _Pace(self.num_samples)
        for drawn in draw(self.model, self.params, self.mesh, **self.how):
            images = to_levels(drawn.images, levels)
            self.num_redrawn += drawn.num_redrawn
            save(images, drawn.mask)
            yield quality.Batch(images, drawn.index, drawn.mask)
            pace.tell(int(drawn.index[-1]) + 1)

    @contextlib.contextmanager
    def saved_samples(self):
        """Gives what takes each batch of images, and makes `samples/evaluated.npz` of them."""
        asked = self.config.evaluate
        path = self.workdir / 'samples' / 'evaluated.npz'
        if self.given or not asked.save_samples:
            yield lambda images, mask: None
            return
        if not distributed.is_main():
            yield lambda images, mask: distributed.fetch(images)
            return
        labels = spread_labels(
            asked.labels, self.num_samples, self.model.num_classes, self.how['seed']
        )
        shape = (self.num_samples, *self.model.image_shape)
        with imagefiles.open_npz(path, shape, labels) as write:
            yield lambda images, mask: write(distributed.fetch(images)[mask])

    def describe_samples(self) -> dict[str, Any]:
        """What the samples are, how they were measured, and with what they were compared."""
        asked = self.config.evaluate
        if self.given:
            source: dict[str, Any] = {'file': asked.samples}
        else:
            source = {**self.how, 'quantization': asked.quantization, 'redrawn': self.num_redrawn}
        return {
            'num_samples': self.num_samples,
            **source,
            **{key: v for f in self.features.values() for key, v in f.settings.items()},
            'references': {
                family: {'path': found.path, 'sha256': found.sha256, **found.metadata}
                for family, found in self.references.items()
                if found
            },
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
