"""The data sets that are prepared on first use.

A builder writes `metadata.json` with `num_levels`: its pixels are the integers below that number.
"""

import pathlib

import tensorflow_datasets as tfds

from tarflow_jax.data.builders.digits import Digits
from tarflow_jax.data.builders.photos import Photos, check_size
from tarflow_jax.errors import InputError

BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {
    Digits.name: Digits,
    Photos.name: Photos,
}

NAMES = (Digits.name, 'photos/64', 'photos/256')
"""Names to show; there are photos of other sizes, too."""


def is_own(name: str) -> bool:
    """Whether one of our builders goes by this name, or by the part of it before a slash."""
    return name.split('/')[0] in BUILDERS


def version(name: str) -> str:
    """The version of one of our data sets.

    Raises:
        InputError: if there is no such variant of it.
    """
    _config(name)
    return str(BUILDERS[name.split('/')[0]].VERSION)


def make(name: str, data_dir: pathlib.Path) -> tfds.core.DatasetBuilder:
    """The builder of one of our data sets.

    Raises:
        InputError: if there is no such variant of it.
    """
    return BUILDERS[name.split('/')[0]](data_dir=data_dir, config=_config(name))


def _config(name: str) -> str | None:
    builder, slash, variant = name.partition('/')
    if builder == Photos.name:
        check_size(variant)
        return variant
    if slash:
        raise InputError(f"there is no data set '{name}': {builder} has no variants.")
    return None
