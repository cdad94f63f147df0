"""What TFDS can store images and labels as, read without TFDS's own decoding."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tarflow_jax.data.images import decode, resize_and_crop
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
GREY = COLOUR[..., :1]


def encoded(pixels, file_format='PNG', mode=None):
    file = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    (image.convert(mode) if mode else image).save(file, file_format)
    return file.getvalue()


def tensor(encoding, dtype=np.uint8, shape=(6, 4, 3)):
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=encoding)


def read_all(data_dir, **options):
    split = open_dataset('pixels', data_dir, **options).split('train')
    return split.__getitems__(range(len(split)))


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
@pytest.mark.parametrize(
    ('feature', 'stored', 'pixels'),
    {
        'bytes': (tensor('bytes'), COLOUR, COLOUR),
        'zlib': (tensor('zlib'), COLOUR, COLOUR),
        'integers': (tensor('none'), COLOUR, COLOUR),
        'colour files': (tfds.features.Image(shape=(6, 4, 3)), [*map(encoded, COLOUR)], COLOUR),
        'grey files': (tfds.features.Image(shape=(6, 4, 1)), [*map(encoded, GREY)], GREY),
        'grey files for colour': (
            tfds.features.Image(shape=(6, 4, 3)),
            [*map(encoded, GREY)],
            np.repeat(GREY, 3, axis=-1),
        ),
    }.values(),
)
def test_pixels_of_a_fixed_shape(
    tmp_path, prepare_somebodys, feature, stored, pixels, in_memory_bytes
):
    features = {'image': feature, 'label': tfds.features.ClassLabel(num_classes=7)}
    contents = [io.BytesIO(image) if isinstance(image, bytes) else image for image in stored]
    examples = [{'image': image, 'label': i + 1} for i, image in enumerate(contents)]
    prepare_somebodys(tmp_path, 'pixels', features, examples)
    dataset = open_dataset('pixels', tmp_path, image_size=99)
    assert dataset.image_shape == pixels.shape[1:]
    assert dataset.num_classes == 7
    batch = read_all(tmp_path, in_memory_bytes=in_memory_bytes)
    np.testing.assert_array_equal(batch['image'], pixels)
    np.testing.assert_array_equal(batch['label'], [1, 2, 3, 4, 5])
    assert batch['image'].dtype == np.uint8
    assert batch['label'].dtype == np.int32


def test_other_features_are_passed_over(tmp_path, prepare_somebodys):
    features = {
        'image': tensor('bytes'),
        'image/filename': tfds.features.Text(),
        'boxes': tfds.features.Sequence({'corner': tfds.features.Scalar(np.float32)}),
    }
    others = {'image/filename': 'a.png', 'boxes': [{'corner': 1.0}, {'corner': 2.0}]}
    prepare_somebodys(tmp_path, 'pixels', features, [{'image': x, **others} for x in COLOUR])
    batch = read_all(tmp_path)
    np.testing.assert_array_equal(batch['image'], COLOUR)
    np.testing.assert_array_equal(batch['label'], np.full(5, -1))


def photo_files():
    """Images of many sizes and kinds."""
    draws = np.random.default_rng(1)
    sizes = [(50, 40), (40, 50), (8, 8), (33, 100), (64, 64)]
    kinds = [('JPEG', 'RGB'), ('JPEG', 'L'), ('PNG', 'RGB'), ('JPEG', 'CMYK'), ('PNG', 'P')]
    for size, (file_format, mode) in zip(sizes, kinds, strict=True):
        rough = Image.fromarray(draws.integers(0, 256, (4, 4, 3), np.uint8)).resize(size)
        yield encoded(np.asarray(rough), file_format, mode)


@pytest.fixture
def photos_of_any_size(tmp_path, prepare_somebodys):
    """A data folder with the images of `photo_files`, and the folder of the data set."""
    features = {
        'image': tfds.features.Image(),
        'label': tfds.features.ClassLabel(num_classes=3),
        'file_name': tfds.features.Text(),
    }
    examples = [
        {'image': io.BytesIO(content), 'label': i % 3, 'file_name': f'{i}.jpg'}
        for i, content in enumerate(photo_files())
    ]
    folder = prepare_somebodys(tmp_path, 'pixels', features, examples)
    return tmp_path, folder


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
@pytest.mark.parametrize('size', [1, 16, 64])
def test_images_of_any_size_become_squares(photos_of_any_size, size, in_memory_bytes):
    data_dir, _ = photos_of_any_size
    dataset = open_dataset('pixels', data_dir, image_size=size)
    assert dataset.image_shape == (size, size, 3)
    batch = read_all(data_dir, image_size=size, in_memory_bytes=in_memory_bytes)
    expected = np.stack([resize_and_crop(decode(content), size) for content in photo_files()])
    np.testing.assert_array_equal(batch['image'], expected)
    np.testing.assert_array_equal(batch['label'], [0, 1, 2, 0, 1])


def test_images_of_any_size_want_a_size(photos_of_any_size):
    data_dir, _ = photos_of_any_size
    with pytest.raises(InputError, match=r"'pixels' come in any size.*image_size=N"):
        open_dataset('pixels', data_dir)


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
def test_an_image_that_cannot_be_decoded(tmp_path, prepare_somebodys, in_memory_bytes):
    features = {'image': tfds.features.Image(shape=(6, 4, 3))}
    whole = encoded(COLOUR[0])
    examples = [{'image': io.BytesIO(content)} for content in (whole, whole[:60])]
    folder = prepare_somebodys(tmp_path, 'pixels', features, examples)
    with pytest.raises(InputError, match='cannot be read; it is damaged') as error:
        open_dataset('pixels', tmp_path, in_memory_bytes=in_memory_bytes).split('train')
    assert str(folder) in str(error.value)


def test_an_image_of_another_shape_than_the_features_tell(tmp_path, prepare_somebodys):
    features = {'image': tfds.features.Image(shape=(6, 4, 3))}
    examples = [{'image': io.BytesIO(encoded(COLOUR[0, :1, :1]))}]  # NumPy would broadcast it
    prepare_somebodys(tmp_path, 'pixels', features, examples)
    with pytest.raises(InputError, match=r'shape \(1, 1, 3\) among \(6, 4, 3\)'):
        read_all(tmp_path)


@pytest.mark.parametrize('label', [7, 2**40])
def test_a_label_that_the_features_do_not_have(tmp_path, prepare_somebodys, label):
    """Class 7 of 7 would be none of a model's, and pass under jit."""
    features = {'image': tensor('bytes'), 'label': tfds.features.Scalar(np.int64)}
    folder = prepare_somebodys(tmp_path, 'pixels', features, [{'image': COLOUR[0], 'label': label}])
    features['label'] = tfds.features.ClassLabel(num_classes=7)
    tfds.features.FeaturesDict(features).save_config(folder)
    with pytest.raises(InputError, match=f'the label {label} among 7 classes'):
        read_all(tmp_path)


def test_a_picture_of_another_format_is_refused(tmp_path, prepare_somebodys):
    """Whatever the name of its format, Pillow would open it."""
    features = {'image': tfds.features.Image(shape=(6, 4, 3))}
    prepare_somebodys(
        tmp_path, 'pixels', features, [{'image': io.BytesIO(encoded(COLOUR[0], 'ICO'))}]
    )
    with pytest.raises(InputError, match='cannot identify image'):
        read_all(tmp_path)


@pytest.mark.parametrize(
    ('features', 'example', 'named'),
    [
        ({'image': tensor('none', np.float32)}, COLOUR[0].astype(np.float32), 'float32'),
        ({'image': tensor('none', shape=(6, 12))}, COLOUR[0].reshape(6, 12), r'\(6, 12\)'),
        ({'image': tensor('bytes', shape=(None, None, 3))}, COLOUR[0], r'\(None, None, 3\)'),
        ({'pixels': tensor('bytes')}, COLOUR[0], 'None'),
    ],
)
def test_features_that_are_no_image(tmp_path, prepare_somebodys, features, example, named):
    prepare_somebodys(tmp_path, 'pixels', features, [{next(iter(features)): example}])
    with pytest.raises(InputError, match=f"'pixels' cannot be used: .*uint8 .*has .*{named}"):
        open_dataset('pixels', tmp_path, image_size=8)
