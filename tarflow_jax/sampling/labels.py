"""Labels of samples: all classes in turn, some of them by number or by name, or drawn."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from tarflow_jax.errors import InputError, did_you_mean
from tarflow_jax.values import String, raise_invalid

LABELS = ('even', 'uniform')
MAX_CAPTIONS = 20  # of a grid with a column for each label
_LABEL_STREAM = 1
_NUMBER = r'\s*(-1|\d{1,9})\s*'
_NUMBERS = re.compile(f'{_NUMBER}(,{_NUMBER})*')
_MAX_NAMES = 50  # in a message


class Labels:
    """'even', 'uniform', or comma-separated classes, by number (-1: none) or by name."""

    def check(self, name: str, value) -> str:
        text = String().check(name, value)
        if text not in LABELS and not all(part.strip() for part in text.split(',')):
            raise_invalid(name, "must be 'even', 'uniform', or classes such as 3,3,7", text)
        return text

    def numbers(self, name: str, text: str, class_names: Callable[[], Sequence[str]]) -> str:
        """Replaces the names of classes by their numbers; raises InputError for unknown names."""
        if text in LABELS or _NUMBERS.fullmatch(text):
            return text
        names = list(class_names())
        parts = [part.strip() for part in text.split(',')]
        try:
            numbers = [
                part
                if _NUMBERS.fullmatch(part)  # a number is one whatever classes are called
                else str(class_number(part, names))
                for part in parts
            ]
        except InputError as error:
            raise InputError(f'{name}={text}: {error}') from error
        return ','.join(numbers)


def class_number(name: str, names: Sequence[str]) -> int:
    """The number of a class of that name, by the names of all in their order.

    Raises:
      InputError: there is none, or the names are not known.
    """
    if name in names:
        return list(names).index(name)
    if not names:
        raise InputError(f'the names of the classes are not known; give numbers, not {name!r}.')
    raise InputError(
        f'there is no class {name!r}{did_you_mean(name, names)} There are '
        f'{", ".join(names[:_MAX_NAMES])}.'
    )


def spread_labels(
    distribution: str, num_samples: int, num_classes: int, seed: int
) -> np.ndarray | None:
    """Labels int32 [num_samples] of samples; None without classes.

    'even' labels cycle through the classes, 0, 1, ..., 0, 1, ..., and '3,3,-1' through these, where
    -1 is no label; 'uniform' labels are random, each a function of (seed, number of the sample)
    alone.

    Raises:
      InputError: the distribution is none of these, or names a class that the model does not have.
    """
    if distribution != 'uniform':
        cycle = label_cycle(distribution, num_classes)
        return np.resize(cycle, num_samples).astype(np.int32) if cycle else None
    if not num_classes:
        return None
    words = np.random.Philox(key=np.array([seed, _LABEL_STREAM], np.uint64)).random_raw(num_samples)
    return (words % np.uint64(num_classes)).astype(np.int32)


def label_cycle(distribution: str, num_classes: int) -> list[int]:
    """The labels through which samples run again and again; none for 'uniform' ones, or no classes.

    Raises:
      InputError: see `spread_labels`.
    """
    if distribution == 'uniform':
        return []
    if distribution == 'even':
        return list(range(num_classes))
    if not _NUMBERS.fullmatch(distribution):
        raise InputError(
            f"labels must be 'even', 'uniform', or numbers such as 3,3,7; got {distribution!r}."
        )
    labels = [int(part) for part in distribution.split(',')]
    if wrong := [label for label in labels if label >= num_classes]:
        classes = f'classes 0 to {num_classes - 1}' if num_classes else 'no classes'
        raise InputError(
            f'labels {distribution}: there is no class {wrong[0]}; the model has {classes}.'
        )
    return labels if num_classes else []


def captions(distribution: str, num_classes: int, names: Sequence[str] = ()) -> list[str]:
    """Column headings of a grid of samples; none where labels do not line up.

    The `names` of the classes, or their numbers where these are not known.
    """
    cycle = label_cycle(distribution, num_classes)
    if len(cycle) > MAX_CAPTIONS:
        return []
    by_number = dict(enumerate(names)) | {-1: 'no label'}
    return [by_number.get(label, str(label)) for label in cycle]
