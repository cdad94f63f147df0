import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn import datasets

from tarflow_jax.data.dataset import ArraySplit
from tarflow_jax.data.sources import open_dataset


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


class SomebodysSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set that is none of ours: features and examples are those of a subclass."""

    VERSION = tfds.core.Version('0.2.0')
    url_infos = None
    features = None
    examples = ()

    def _info(self):
        features = tfds.features.FeaturesDict(self.features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self.examples)


@pytest.fixture(scope='session')
def prepare_somebodys():
    """Prepares a data set of given features and examples; gives its folder."""

    def prepare(data_dir, name, features, examples, num_shards=1):
        members = dict(name=name, features=features, examples=examples)
        bases, how = (SomebodysSet,), dict(skip_registration=True)
        kind = types.new_class(name, bases, how, lambda body: body.update(members))
        config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=num_shards)
        builder = kind(data_dir=data_dir)
        builder.download_and_prepare(file_format='array_record', download_config=config)
        return builder.data_path

    return prepare


@pytest.fixture(scope='session')
def prepare_stripes(prepare_somebodys):
    """Prepares twenty images (4, 6, 3), image i full of i, without labels, in three files."""

    def prepare(data_dir, name='stripes', dtype=np.uint8):
        features = {'image': tfds.features.Tensor(shape=(4, 6, 3), dtype=dtype)}
        examples = [{'image': np.full((4, 6, 3), i, dtype)} for i in range(20)]
        return prepare_somebodys(data_dir, name, features, examples, num_shards=3)

    return prepare
