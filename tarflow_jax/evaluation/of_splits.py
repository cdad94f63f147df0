"""The part of an evaluation that scores whole splits of the data."""

import math
from typing import Any

from tarflow_jax import experiment
from tarflow_jax.data.sources import Dataset
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation.metrics import OF_SPLITS, split_names
from tarflow_jax.evaluation.subject import Subject
from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.likelihood.scores import in_float32


def check(config, model: TarFlow, dataset: Dataset, names: list[str]) -> None:
    """Raises InputError if the model has no such scores, or there is no such split."""
    if {'accuracy', 'cross_entropy'} & set(names) and not model.num_classes:
        raise InputError(
            'evaluate.metrics names accuracy or cross_entropy, and the model has no classes '
            '(model.num_classes=0): it cannot classify. Take them out.'
        )
    for name in split_names(config.evaluate.splits):
        dataset.split(name)


class OfSplits:
    """Scores of splits, each image exactly once.

    Args:
      subject: what is evaluated, its parameters loaded.
      names: metrics, keys of `OF_SPLITS`.

    Attributes:
      names: likewise.

    Raises:
      InputError: the model has no such scores, or there is no such split.
    """

    def __init__(self, subject: Subject, names: list[str]):
        self._subject = subject
        self.names = names
        check(subject.config, subject.model, subject.dataset, names)
        asked = split_names(subject.config.evaluate.splits)
        self._splits = {name: subject.dataset.split(name) for name in asked}

    def scores(self, done: dict[str, float]) -> dict[str, float]:
        """By 'split/metric', computed in float32 whatever the model was trained in.

        Args:
          done: the same of an interrupted evaluation, which are taken over.
        """
        if done:
            return {key: math.nan if value is None else value for key, value in done.items()}
        found: dict[str, float] = {}
        for split_name in self._splits:
            scores = self._scores_of(split_name)
            for name in self.names:
                for key in (name, f'{name}_error'):
                    if key in scores:
                        found[f'{split_name}/{key}'] = scores[key]
        return found

    def _scores_of(self, split_name: str) -> dict[str, float]:
        subject, asked = self._subject, self._subject.config.evaluate
        scores: dict[str, float] = {}
        for function in dict.fromkeys(OF_SPLITS[name] for name in self.names):
            scores |= function(
                in_float32(subject.model),
                subject.params,
                self._splits[split_name],
                experiment.make_noise(subject.config, subject.dataset),
                subject.mesh,
                batch_size=asked.batch_size,
                num_draws=asked.num_draws,
                seed=asked.seed,
                before_batch=subject.stop.check,
            )
        return scores

    def finish(self) -> None:
        """Does nothing: no file is left to remove."""

    def details(self) -> dict[str, Any]:
        """What the scores are of, and how they came about."""
        config = self._subject.config
        return {
            'splits': {
                'dataset': self._subject.dataset.name,
                'num_images': {name: len(split) for name, split in self._splits.items()},
                'noise': {'type': config.noise.type, 'std': config.noise.std},
                'num_draws': config.evaluate.num_draws,
                'seed': config.evaluate.seed,
                'dtype': 'float32',
            }
        }
