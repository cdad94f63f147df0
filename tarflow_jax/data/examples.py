"""Decodes TFDS's serialized examples into batches."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from tarflow_jax.data.dataset import Batch
from tarflow_jax.data.images import decode, open_image, resize_and_crop
from tarflow_jax.errors import InputError

_Example: Any = tf_example_pb2.Example  # pyrefly: ignore[missing-attribute] (it is generated)
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}

Features = Mapping[str, tfds.features.FeatureConnector]


class ExampleReader:
    """Makes batches of serialized examples; reads their image and label, and nothing else.

    TFDS's own way, which parses and nests every feature, takes several times as long.

    Args:
        name: the name of the data set, for messages.
        features: TFDS's description of an example.
        image_size: images that come in any size become RGB squares of this side in pixels; images
            of one fixed shape stay as they are.

    Attributes:
        image_shape: (H, W, C) of every image.
        num_classes: labels are the integers below it; 0 where examples have no label.
        class_names: the names of the classes, if they have any.

    Raises:
        InputError: there is no image of uint8, or one of any size and no `image_size`.
    """

    def __init__(self, name: str, features: Features, image_size: int | None = None):
        feature = checked_image(name, features)
        label = features.get('label')
        is_class = isinstance(label, tfds.features.ClassLabel)
        self.num_classes: int = (label.num_classes or 0) if is_class else 0
        self.class_names: tuple[str, ...] = tuple(label.names or ()) if is_class else ()
        self.image_shape: tuple[int, int, int] = feature.shape
        is_file = isinstance(feature, tfds.features.Image)
        self._image: Callable[..., np.ndarray] = functools.partial(
            _image_file if is_file else _tensor, feature
        )
        if None in feature.shape:
            if not image_size:
                raise InputError(
                    f"the images of data set '{name}' come in any size, and are scaled and cropped "
                    'to squares: set config.model.image_shape=(N,N,3), or give image_size=N.'
                )
            self.image_shape = (image_size, image_size, 3)
            self._image = functools.partial(_any_image, image_size)

    def __call__(self, records: Sequence[bytes]) -> Batch:
        """Decodes n examples: image uint8 [n, H, W, C], label int32 [n] (-1: no label).

        Raises whatever the parser and the decoders raise at damaged examples.
        """
        images = np.empty((len(records), *self.image_shape), np.uint8)
        labels = np.full(len(records), -1, np.int32)
        for i, record in enumerate(records):
            values = _Example.FromString(record).features.feature
            image = self._image(values['image'])
            if image.shape != self.image_shape:  # or it might be broadcast
                raise ValueError(f'an image of shape {image.shape} among {self.image_shape}')
            images[i] = image
            if self.num_classes:
                label = values['label'].int64_list.value[0]
                if not -1 <= label < self.num_classes:
                    raise ValueError(f'the label {label} among {self.num_classes} classes')
                labels[i] = label
        return {'image': images, 'label': labels}


def checked_image(name: str, features: Features) -> tfds.features.FeatureConnector:
    """Returns the feature 'image' of the data set `name`.

    Raises:
        InputError: it is not uint8 [H, W, C] of one shape, nor image files of any size with three
            channels.
    """
    feature = features.get('image')
    shape = getattr(feature, 'shape', ())
    is_file = isinstance(feature, tfds.features.Image)
    is_usable = (
        (is_file or isinstance(feature, tfds.features.Tensor))
        and feature.np_dtype == np.uint8
        and len(shape) == 3
        and (shape[2] == 3 and is_file if None in shape else not is_file or shape[2] in _MODES)
    )
    if feature is None or not is_usable:
        raise InputError(
            f"data set '{name}' cannot be used: it needs a feature 'image' of uint8 and one fixed "
            f'shape (H, W, C), or of image files in colour, (None, None, 3), and has {feature}.'
        )
    return feature


def _tensor(feature: tfds.features.Tensor, value) -> np.ndarray:
    if value.HasField('bytes_list'):
        return np.asarray(feature.decode_example_np(value.bytes_list.value[0]))
    return np.array(value.int64_list.value, np.uint8).reshape(feature.shape)


def _image_file(feature: tfds.features.Image, value) -> np.ndarray:
    """Decodes with Pillow alone: TFDS uses OpenCV where it is installed, with other results."""
    mode = _MODES[feature.shape[2]]
    with open_image(value.bytes_list.value[0]) as image:
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _any_image(size: int, value) -> np.ndarray:
    return resize_and_crop(decode(value.bytes_list.value[0]), size)
