"""What training shows beside its numbers."""

from types import SimpleNamespace

import numpy as np

from tarflow_jax.data.dataset import ArraySplit
from tarflow_jax.training.milestones import grid_of


def test_a_grid_of_a_split_shows_its_levels():
    levels = np.array([0, 128, 200, 255], np.uint8)
    split = ArraySplit(np.tile(levels[:, None, None, None], (1, 8, 8, 1)), np.zeros(4, np.int32))
    experiment = SimpleNamespace(
        sampling={'num_samples': 4}, dataset=SimpleNamespace(num_levels=256)
    )
    assert set(np.unique(grid_of(split, experiment))) == set(levels)  # gaps are 128, too
