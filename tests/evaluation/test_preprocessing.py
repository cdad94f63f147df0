import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from golden.inception import recipe
from PIL import Image

from tarflow_jax.errors import InputError
from tarflow_jax.evaluation.preprocessing import PREPROCESSINGS, preprocess

GOLDEN = Path(recipe.__file__).parent
SIZES = (1, 2, 8, 64, 299, 301, 600)


@pytest.mark.parametrize('shape', recipe.EDGE_SHAPES)
@pytest.mark.parametrize('package', PREPROCESSINGS)
def test_pixels_are_those_of_the_packages(package, shape):
    """At every 13th row and column, for an image that is enlarged one way and shrunk the other."""
    height, width = shape
    ours = preprocess(recipe.images(height, width), package)[:, ::13, ::13]
    with np.load(GOLDEN / f'{package}.npz') as arrays:
        np.testing.assert_allclose(ours, arrays[f'pixels_{height}x{width}'], rtol=0, atol=2e-6)


@pytest.mark.parametrize('size', [20, 256, 299, 512])
def test_clean_fid_is_pillows_resize_of_float32(size):
    image = recipe.images(size, size)[0]
    channels = [
        Image.fromarray(image[:, :, i].astype(np.float32)).resize((299, 299), Image.BICUBIC)
        for i in range(3)
    ]
    pillow = np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)
    ours = preprocess(image[None], 'clean-fid')[0]
    np.testing.assert_allclose(ours, (pillow - 128) / 128, rtol=0, atol=2e-6)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('package', PREPROCESSINGS)
def test_weights_of_a_pixel_sum_to_one(package, size):
    weights = PREPROCESSINGS[package].resize(size)
    assert weights.shape == (299, size)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize('package', PREPROCESSINGS)
def test_images_of_299_pixels_are_only_rescaled(package):
    np.testing.assert_allclose(PREPROCESSINGS[package].resize(299), np.eye(299), atol=2e-5)


@pytest.mark.parametrize('package', ['pytorch-fid', 'clean-fid'])
@pytest.mark.parametrize('size', SIZES)
def test_a_mirrored_image_stays_one(package, size):
    weights = PREPROCESSINGS[package].resize(size)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-4)


def test_legacy_bilinear_is_off_the_centre():
    """The error of TensorFlow 1 that torch-fidelity keeps: pixel 0 stays, the last one is lost."""
    weights = PREPROCESSINGS['torch-fidelity'].resize(598)
    np.testing.assert_array_equal(weights, np.eye(598)[::2])


@pytest.mark.parametrize('package', PREPROCESSINGS)
@pytest.mark.parametrize('size', [8, 400])
def test_flat_images_and_the_range(package, size):
    """Levels 0 and 255 are the ends of the network's range, and 0 its middle."""
    levels = np.array([0, 127, 128, 255], np.uint8).reshape(4, 1, 1, 1)
    images = np.broadcast_to(levels, (4, size, size, 3))
    x = preprocess(images, package)
    assert (x.shape, x.dtype) == ((4, 299, 299, 3), np.float32)
    ends = (1, 2 * 127 / 255 - 1, 2 * 128 / 255 - 1) if package == 'pytorch-fid' else ()
    low, below, above, high = (-1, *ends[1:], 1) if ends else (-1, -1 / 128, 0, 127 / 128)
    for image, expected in zip(x, (low, below, above, high), strict=True):
        np.testing.assert_allclose(image, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize('package', PREPROCESSINGS)
def test_an_edge_between_black_and_white_stays_in_range(package):
    images = np.zeros((1, 16, 16, 3), np.uint8)
    images[:, 4:, 6:] = 255
    x = preprocess(images, package)
    assert np.abs(x).max() <= 1 + 1e-6


@pytest.mark.parametrize('package', PREPROCESSINGS)
def test_one_channel_is_grey(package):
    grey = recipe.images(16, 24)[..., :1]
    alone = preprocess(grey, package)
    repeated = preprocess(grey.repeat(3, axis=-1), package)
    np.testing.assert_allclose(alone, repeated, rtol=0, atol=1e-6)


@pytest.mark.parametrize('package', PREPROCESSINGS)
def test_it_can_be_jitted(package):
    images = recipe.images(24, 16)
    jitted = jax.jit(functools.partial(preprocess, name=package))(images)
    np.testing.assert_allclose(jitted, preprocess(images, package), rtol=0, atol=2e-6)


def test_the_default_is_that_of_tarflow():
    images = recipe.images(8, 8)
    expected = preprocess(images, 'torch-fidelity')
    np.testing.assert_array_equal(preprocess(images), expected)


@pytest.mark.parametrize(
    ('images', 'why'),
    [
        (np.zeros((1, 8, 8, 3), np.float32), 'type float32'),
        (np.zeros((8, 8, 3), np.uint8), r'shape \(8, 8, 3\)'),
        (np.zeros((1, 8, 8, 2), np.uint8), r'shape \(1, 8, 8, 2\)'),
        (np.zeros((1, 8, 8, 4), np.uint8), r'shape \(1, 8, 8, 4\)'),
        (np.zeros((1, 0, 8, 3), np.uint8), r'shape \(1, 0, 8, 3\)'),
    ],
)
def test_other_images_are_refused(images, why):
    with pytest.raises(InputError, match=f'{why}.* cannot be scored'):
        preprocess(images)


def test_an_unknown_preprocessing_is_refused():
    with pytest.raises(InputError, match=r"torch-fidelity, pytorch-fid, clean-fid; got 'cleanfid'"):
        preprocess(np.zeros((1, 8, 8, 3), np.uint8), 'cleanfid')
