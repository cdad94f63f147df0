"""All metrics, by name."""

import difflib

from tarflow_jax.errors import InputError
from tarflow_jax.evaluation import quality
from tarflow_jax.likelihood import classify
from tarflow_jax.likelihood.scores import score_split

# Of a split, with what computes them.
OF_SPLITS = {
    'nats_per_dim': score_split,
    'bits_per_dim': score_split,
    'iw_bits_per_dim': score_split,
    'accuracy': classify.score_split,
    'cross_entropy': classify.score_split,
}
OF_SAMPLES = tuple(quality.METRICS)
METRICS = (*OF_SPLITS, *OF_SAMPLES)


def metric_names(config) -> list[str]:
    """The metrics that `config.evaluate` asks for; raises InputError for unknown ones."""
    names = split_names(config.evaluate.metrics)
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        nearest = difflib.get_close_matches(unknown[0], METRICS, n=1) if unknown else []
        hint = f" (did you mean '{nearest[0]}'?)" if nearest else ''
        raise InputError(
            f'evaluate.metrics must name some of {", ".join(METRICS)}; got '
            f'{", ".join(unknown) or "none"}{hint}.'
        )
    return names


def split_names(names) -> list[str]:
    """('a', 'b'), or 'a,b' as it comes from the command line, as a list without repetition."""
    parts = (name.strip() for name in ','.join(names).split(','))
    return list(dict.fromkeys(name for name in parts if name))
