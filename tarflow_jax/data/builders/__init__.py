"""The data sets that are prepared on first use.

A builder writes `metadata.json` with `num_levels`: its pixels are the integers below that number.
"""

import tensorflow_datasets as tfds

from tarflow_jax.data.builders.digits import Digits

BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {Digits.name: Digits}
