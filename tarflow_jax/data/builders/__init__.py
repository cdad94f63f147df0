"""The data sets that are prepared on first use.

A builder writes `metadata.json` with `num_levels`: its pixels are the integers below that number.
"""

import pathlib

import tensorflow_datasets as tfds

from tarflow_jax.data.builders.digits import Digits
from tarflow_jax.data.builders.photos import MAX_SIZE, MIN_SIZE, Photos
from tarflow_jax.errors import InputError

BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {
    Digits.name: Digits,
    Photos.name: Photos,
}

NAMES = (Digits.name, 'photos/64', 'photos/256')
"""Names to show; there are photos of other sizes, too."""


def is_own(name: str) -> bool:
    """Returns whether one of our builders has this name, or the part of it before a slash."""
    return name.split('/')[0] in BUILDERS


def version(name: str) -> str:
    """Returns the version of one of our data sets.

    Raises:
        InputError: it has no such variant.
    """
    builder, _, variant = name.partition('/')
    variants = list(BUILDERS[builder].builder_configs)
    if variant in variants or (name == builder and not variants):
        return str(BUILDERS[builder].VERSION)
    raise InputError(
        f"there is no data set '{name}': {Digits.name} has no variants, and names of photos end "
        f'with the crop size in pixels, photos/{MIN_SIZE} to photos/{MAX_SIZE}, such as photos/64.'
    )


def make(name: str, data_dir: pathlib.Path) -> tfds.core.DatasetBuilder:
    """Returns the builder of one of our data sets, which has such a variant."""
    builder, _, variant = name.partition('/')
    return BUILDERS[builder](data_dir=data_dir, config=variant or None)
