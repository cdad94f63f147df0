"""Random crops of the photographs that scikit-image and scikit-learn carry."""

import importlib.resources
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from tarflow_jax.data.images import decode

# Only colour photographs of scenes. Of the two views of the motorcycle one is taken.
TRAIN_PHOTOS = (
    ('skimage.data', 'astronaut.png'),
    ('skimage.data', 'coffee.png'),
    ('skimage.data', 'motorcycle_left.png'),
    ('sklearn.datasets.images', 'china.jpg'),
    ('sklearn.datasets.images', 'flower.jpg'),
)
TEST_PHOTOS = (
    ('skimage.data', 'chelsea.png'),
    ('skimage.data', 'rocket.jpg'),
)
MIN_SIZE, MAX_SIZE = 8, 300  # pixels; the shorter side of the smallest photograph is 300

_SEEDS = {'train': 0, 'test': 1}
_MAX_SIZE_OF_MANY = 64


class Photos(tfds.core.GeneratorBasedBuilder):
    """Crops of N x N pixels, RGB, without labels; `crop` says how each is chosen.

    8,192 crops of five photographs are the train split, 1,024 crops of two others the test split;
    2,048 and 256 where N is above 64. Example i is of photograph i modulo their number.
    """

    name = 'photos'
    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS's way)
        tfds.core.BuilderConfig(name=str(size), description=f'Crops of {size} x {size} pixels.')
        for size in range(MIN_SIZE, MAX_SIZE + 1)
    ]
    url_infos = None  # nothing is downloaded; looking for checksums takes importlib_resources

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (self._size, self._size, 3)
        image = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding='bytes')
        return tfds.core.DatasetInfo(
            builder=self,
            description='Random crops of photographs from scikit-image and scikit-learn.',
            homepage='https://scikit-image.org/docs/stable/api/skimage.data.html',
            features=tfds.features.FeaturesDict({'image': image}),
            disable_shuffling=True,  # TFDS would order the examples by a hash of their keys
            metadata=tfds.core.MetadataDict(num_levels=256),
        )

    @property
    def _size(self) -> int:
        return int(self.builder_config.name)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # the photographs are in the packages
        is_small = self._size <= _MAX_SIZE_OF_MANY
        return {
            'train': self._generate_examples(
                load_photos(TRAIN_PHOTOS), 8192 if is_small else 2048, _SEEDS['train']
            ),
            'test': self._generate_examples(
                load_photos(TEST_PHOTOS), 1024 if is_small else 256, _SEEDS['test']
            ),
        }

    def _generate_examples(
        self, photos: Sequence[Image.Image], count: int, seed: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(count):
            yield i, {'image': crop(photos[i % len(photos)], self._size, seed, i)}


def load_photos(places: Sequence[tuple[str, str]]) -> list[Image.Image]:
    """Returns the photographs in RGB, each given as (package, file name)."""
    files = [importlib.resources.files(package) / name for package, name in places]
    return [decode(file.read_bytes()) for file in files]


def crop(photo: Image.Image, size: int, seed: int, index: int) -> np.ndarray:
    """Cuts a random square, which depends only on the photograph, size, seed and index.

    The side of the square is log-uniform between `size` and the shorter side of the photograph, and
    its position is uniform. The square is scaled down to `size` with Pillow's antialiased bilinear
    filter.

    Returns:
        uint8 [size, size, 3].
    """
    # Raw Philox words are the same in every version of NumPy.
    words = np.random.Philox(key=np.array([seed, index], np.uint64)).random_raw(3)
    scale, across, down = words / 2.0**64
    side = round(size * (min(photo.size) / size) ** scale)
    left, top = (int(u * (s - side + 1)) for u, s in zip((across, down), photo.size, strict=True))
    square = photo.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    return np.asarray(square)
