"""The part of an evaluation that scores whole splits of the data."""

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


def score(
    split_name: str, experiment: Experiment, params, stop: Stop, names: list[str]
) -> dict[str, float]:
    """Scores a split, each image exactly once, in float32 for models of any dtype.

    Args:
      split_name: the split.
      experiment: the experiment to evaluate.
      params: the parameters of its model.
      stop: receives the signals.
      names: the metrics to compute, keys of `SPLIT_METRICS`.

    Returns:
      The scores by 'split/metric'.
    """
    settings = experiment.config.evaluate
    split = experiment.dataset.split(split_name)
    size = padded_batch_size(settings.batch_size, len(split), experiment.mesh)
    scores: dict[str, float] = {}
    for function in dict.fromkeys(SPLIT_METRICS[name] for name in names):
        noun = f'images of {split_name}'
        with count_progress(noun, len(split), enabled=distributed.is_main()) as progress:
            scores |= function(
                as_scored(experiment.model),
                params,
                split,
                experiment.noise,
                experiment.mesh,
                batch_size=settings.batch_size,
                num_draws=settings.num_draws,
                seed=settings.seed,
                before_batch=progress.before_batch(size, stop.check),
            )
    keys = [key for name in names for key in (name, f'{name}_error') if key in scores]
    return {f'{split_name}/{key}': scores[key] for key in keys}


def details(experiment: Experiment) -> dict[str, Any]:
    """What was scored, and with which settings."""
    config = experiment.config
    splits = {name: experiment.dataset.split(name) for name in evaluated_splits(config)}
    return {
        'splits': {
            'dataset': experiment.dataset.name,
            'num_images': {name: len(split) for name, split in splits.items()},
            'noise': {'type': config.noise.type, 'std': config.noise.std},
            'num_draws': config.evaluate.num_draws,
            'seed': config.evaluate.seed,
            'dtype': 'float32',
        }
    }
