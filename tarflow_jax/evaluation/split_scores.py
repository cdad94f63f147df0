"""The part of an evaluation that scores whole splits of the data."""

import math
from typing import Any

from tarflow_jax.build import Experiment
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation.metrics import SPLIT_METRICS, evaluated_splits
from tarflow_jax.likelihood.scores import as_scored
from tarflow_jax.parallel import distributed
from tarflow_jax.parallel.mesh import padded_batch_size
from tarflow_jax.progress import count_progress
from tarflow_jax.stopping import Stop


def check(experiment: Experiment, names: list[str]) -> None:
    """Raises InputError if the model has no such scores, or there is no such split."""
    if {'accuracy', 'cross_entropy'} & set(names) and not experiment.model.num_classes:
        raise InputError(
            'evaluate.metrics names accuracy or cross_entropy, and the model has no classes '
            '(model.num_classes=0): it cannot classify. Take them out.'
        )
    for name in evaluated_splits(experiment.config):
        key = 'evaluate.splits' if experiment.config.evaluate.splits else 'data.test_split'
        experiment.dataset.split(name, key)


class SplitScores:
    """Scores of splits, each image exactly once.

    Args:
      experiment: the experiment to evaluate.
      params: the parameters of its model.
      stop: receives the signals.
      names: the metrics to compute, keys of `SPLIT_METRICS`.

    Attributes:
      names: the metrics.

    Raises:
      InputError: the model has no such scores, or there is no such split.
    """

    def __init__(self, experiment: Experiment, params, stop: Stop, names: list[str]):
        self._experiment = experiment
        self._params = params
        self._stop = stop
        self.names = names
        check(experiment, names)
        self._splits = {
            name: experiment.dataset.split(name) for name in evaluated_splits(experiment.config)
        }

    def prepare(self) -> None:
        """Does nothing: splits are scored as they are."""

    def scores(self, done: dict[str, float]) -> dict[str, float]:
        """Returns the scores by 'split/metric', computed in float32 for models of any dtype.

        Args:
          done: the scores of an interrupted evaluation, which are returned as they are.
        """
        if done:
            return {key: math.nan if value is None else value for key, value in done.items()}
        values: dict[str, float] = {}
        for split_name in self._splits:
            scores = self._scores_of(split_name)
            for name in self.names:
                for key in (name, f'{name}_error'):
                    if key in scores:
                        values[f'{split_name}/{key}'] = scores[key]
        return values

    def _scores_of(self, split_name: str) -> dict[str, float]:
        experiment, settings = self._experiment, self._experiment.config.evaluate
        scores: dict[str, float] = {}
        for function in dict.fromkeys(SPLIT_METRICS[name] for name in self.names):
            split = self._splits[split_name]
            size = padded_batch_size(settings.batch_size, len(split), experiment.mesh)
            noun = f'images of {split_name}'
            with count_progress(noun, len(split), enabled=distributed.is_main()) as progress:
                scores |= function(
                    as_scored(experiment.model),
                    self._params,
                    split,
                    experiment.noise,
                    experiment.mesh,
                    batch_size=settings.batch_size,
                    num_draws=settings.num_draws,
                    seed=settings.seed,
                    before_batch=progress.before_batch(size, self._stop.check),
                )
        return scores

    def finish(self) -> None:
        """Does nothing: there are no files to remove."""

    def details(self) -> dict[str, Any]:
        """Returns what was scored, and with which settings."""
        config = self._experiment.config
        return {
            'splits': {
                'dataset': self._experiment.dataset.name,
                'num_images': {name: len(split) for name, split in self._splits.items()},
                'noise': {'type': config.noise.type, 'std': config.noise.std},
                'num_draws': config.evaluate.num_draws,
                'seed': config.evaluate.seed,
                'dtype': 'float32',
            }
        }
