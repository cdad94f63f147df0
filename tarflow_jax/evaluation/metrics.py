"""All metrics, by name."""

from collections.abc import Iterable

from tarflow_jax.errors import InputError, did_you_mean
from tarflow_jax.evaluation.distances import NEIGHBOURS
from tarflow_jax.likelihood import classify
from tarflow_jax.likelihood.scores import score_split

# Metrics of a split, each with the function that computes it.
SPLIT_METRICS = {
    'nats_per_dim': score_split,
    'bits_per_dim': score_split,
    'iw_bits_per_dim': score_split,
    'accuracy': classify.score_split,
    'cross_entropy': classify.score_split,
}
# Metrics of samples, each with its features and its comparison. Precision and recall come from one
# computation of neighbours, and must follow one another here.
SAMPLE_METRICS = {
    'fid': ('pool', 'frechet'),
    'sfid': ('spatial', 'frechet'),
    'inception_score': ('logits_unbiased', 'score'),
    'precision': ('pool', 'neighbours'),
    'recall': ('pool', 'neighbours'),
    'haar_frechet': ('haar', 'frechet'),
    'haar_precision': ('haar', 'neighbours'),
    'haar_recall': ('haar', 'neighbours'),
}
# What one file of reference statistics has.
FAMILIES = {'inception': ('pool', 'spatial'), 'haar': ('haar',)}
ROW_FEATURES = {
    kind for kind, how in SAMPLE_METRICS.values() if how == 'neighbours'
}  # kept one by one
FAMILY = {name: family for family, names in FAMILIES.items() for name in names}

# Samples below which a metric does not exist.
MIN_SAMPLES = {'frechet': 2, 'neighbours': NEIGHBOURS + 1, 'score': 1}
MIN_IMAGES = NEIGHBOURS + 1  # of a reference

METRICS = (*SPLIT_METRICS, *SAMPLE_METRICS)


def metric_names(config) -> list[str]:
    """The metrics that `config.evaluate` asks for; raises InputError for unknown ones."""
    names = split_names(config.evaluate.metrics)
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        hint = did_you_mean(unknown[0], METRICS) if unknown else '.'
        raise InputError(
            f'evaluate.metrics must name some of {", ".join(METRICS)}; got '
            f'{", ".join(unknown) or "none"}{hint}'
        )
    return names


def evaluated_splits(config) -> list[str]:
    """The splits that `config.evaluate` asks for, by default the test split of `config.data`."""
    return split_names(config.evaluate.splits) or [config.data.test_split]


def split_names(names) -> list[str]:
    """('a', 'b'), or 'a,b' as it comes from the command line, as a list without repetition."""
    parts = (name.strip() for name in ','.join(names).split(','))
    return list(dict.fromkeys(name for name in parts if name))


def families(names: Iterable[str]) -> dict[str, set[str]]:
    """The families that metrics need, each with the features that they take of samples."""
    kinds_by_family: dict[str, set[str]] = {}
    for kind, _ in (SAMPLE_METRICS[name] for name in names if name in SAMPLE_METRICS):
        kinds_by_family.setdefault(FAMILY.get(kind, 'inception'), set()).add(kind)
    return kinds_by_family


def needs_reference(names: Iterable[str], family: str) -> bool:
    """Whether a metric compares features of the family with those of a reference."""
    return any(SAMPLE_METRICS[name][0] in FAMILIES[family] for name in names)


def sample_count_error(names: Iterable[str], num_samples: int) -> str | None:
    """Returns why there are too few samples to measure; None if there are enough."""
    least = max(MIN_SAMPLES[SAMPLE_METRICS[name][1]] for name in names)
    if num_samples >= least:
        return None
    return f'must be at least {least} for {", ".join(names)}; got {num_samples}.'
