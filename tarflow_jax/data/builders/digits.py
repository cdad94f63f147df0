"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 pixels of the levels 0..16 and a label 0..9, in scikit-learn's order.

    The test split is every example whose index there is 5 modulo 6; the rest is the train split.
    """

    name = 'digits'
    VERSION = tfds.core.Version('1.0.0')
    url_infos = None  # nothing is downloaded; looking for checksums takes importlib_resources

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8, encoding='bytes')
        label = tfds.features.ClassLabel(num_classes=10)
        return tfds.core.DatasetInfo(
            builder=self,
            description='Handwritten digits of 8x8 pixels with 17 levels, from scikit-learn.',
            homepage='https://doi.org/10.24432/C50P49',
            features=tfds.features.FeaturesDict({'image': image, 'label': label}),
            supervised_keys=('image', 'label'),
            disable_shuffling=True,  # TFDS would order the examples by a hash of their keys
            metadata=tfds.core.MetadataDict(num_levels=17),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # scikit-learn carries the images
        return {
            'train': self._generate_examples(test=False),
            'test': self._generate_examples(test=True),
        }

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn import datasets  # slow to import, and needed only here

        images, labels = datasets.load_digits(return_X_y=True)
        images = images.astype(np.uint8).reshape(-1, 8, 8, 1)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            if (i % 6 == 5) == test:
                yield i, {'image': image, 'label': int(label)}
