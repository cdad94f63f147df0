import numpy as np
import pytest
from sklearn import datasets

from tarflow_jax.data.sources import ArraySplit, open_dataset


@pytest.fixture(scope='session')
def prepared(tmp_path_factory):
    """A data folder with the digits; not to be written to."""
    data_dir = tmp_path_factory.mktemp('data')
    open_dataset('digits', data_dir)
    return data_dir


@pytest.fixture(scope='session')
def scikit_learn_digits():
    """Scikit-learn's own images uint8 [1797, 8, 8, 1] and labels [1797]."""
    images, labels = datasets.load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8, 1).astype(np.uint8), labels


@pytest.fixture
def counting_split():
    """Makes a split whose example i is the number i, as label and as a 1x1 image of two bytes."""

    def make(num_examples):
        numbers = np.arange(num_examples)
        images = np.stack([numbers % 256, numbers // 256], axis=-1).astype(np.uint8)
        return ArraySplit(images[:, None, None, :], numbers.astype(np.int32))

    return make
