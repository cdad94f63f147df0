"""Images, labels and seeds of whatever kind become the same arrays."""

import jax
import numpy as np
import pytest
from PIL import Image

from tarflow_jax import inputs
from tarflow_jax.errors import InputError
from tarflow_jax.flow.inputs import as_key

SHAPE = (4, 4, 3)
LEVELS = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.uint8)
PIXELS = LEVELS.astype(np.float32) / 127.5 - 1
GREY = LEVELS[..., :1]


class Unreadable:
    """As a tensor of PyTorch is of which gradients are taken."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError('call detach first\nand more')


@pytest.mark.parametrize(
    'images',
    [
        LEVELS,
        PIXELS,
        jax.numpy.asarray(PIXELS),
        PIXELS.astype(np.float64).tolist(),
        list(LEVELS),
        [jax.numpy.asarray(image) for image in PIXELS],
        [Image.fromarray(image) for image in LEVELS],
        [Image.fromarray(LEVELS[0]), LEVELS[1]],
    ],
    ids=['uint8', 'float', 'jax', 'lists', 'arrays', 'of_jax', 'pictures', 'pictures_and_arrays'],
)
def test_images(images):
    batch = inputs.image_batch(images, SHAPE)
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch, PIXELS, atol=1e-6)


@pytest.mark.parametrize('image', [LEVELS[0], PIXELS[0], Image.fromarray(LEVELS[0])])
def test_a_single_image_is_a_batch_of_one(image):
    np.testing.assert_allclose(inputs.image_batch(image, SHAPE), PIXELS[:1], atol=1e-6)


def test_grey_images_may_lack_their_channel():
    for images in GREY[..., 0], [Image.fromarray(image[..., 0]) for image in GREY]:
        batch = inputs.image_batch(images, (4, 4, 1))
        np.testing.assert_allclose(batch, GREY.astype(np.float32) / 127.5 - 1, atol=1e-6)
    assert inputs.image_batch(GREY[0, ..., 0], (4, 4, 1)).shape == (1, 4, 4, 1)


def test_pictures_become_what_the_model_takes():
    """Transparency over white, grey for models of grey, another size scaled and cropped."""
    clear = Image.new('RGBA', (9, 4), (0, 0, 0, 0))
    np.testing.assert_array_equal(inputs.image_batch(clear, SHAPE), np.ones((1, *SHAPE)))
    np.testing.assert_array_equal(inputs.image_batch(clear, (2, 2, 1)), np.ones((1, 2, 2, 1)))
    with pytest.raises(InputError, match='scaled and cropped only for models of square images'):
        inputs.image_batch(clear, (4, 8, 3))


@pytest.mark.parametrize(
    ('images', 'words'),
    [
        (LEVELS.astype(np.int64), 'must be floating-point numbers; got int64'),
        (LEVELS[..., :1], r'of shape \[batch, 4, 4, 3\]; got \[2, 4, 4, 1\]'),
        ([LEVELS[0], LEVELS[1, :2]], r'must have one shape; got \[\(2, 4, 3\), \(4, 4, 3\)\]'),
        ([LEVELS[0], PIXELS[0]], 'images must all be of one type; got float32 and uint8'),
        ([Image.fromarray(LEVELS[0]), PIXELS[0]], 'must all be of one type'),
        (Unreadable(), 'cannot become a NumPy array: call detach first'),
        (Image.new('L', (0, 8)), 'a Pillow image of 0x8 is empty'),
        ('cat.png', "must be images: arrays, Pillow images, or lists of them; got 'cat.png'"),
        (None, 'must be images'),
    ],
)
def test_what_is_no_image_is_refused(images, words):
    with pytest.raises(InputError, match=words):
        inputs.image_batch(images, SHAPE)


def test_levels_stay_as_they_are():
    for images in LEVELS, list(LEVELS), [Image.fromarray(image) for image in LEVELS]:
        np.testing.assert_array_equal(inputs.level_batch(images, SHAPE, 256), LEVELS)
    with pytest.raises(InputError, match=r'levels up to \d+; with num_levels=17 they must lie in'):
        inputs.level_batch(LEVELS, SHAPE, 17)
    with pytest.raises(InputError, match='must be uint8 levels, because'):
        inputs.level_batch(PIXELS, SHAPE, 256)


@pytest.mark.parametrize(
    ('labels', 'expected'),
    [
        (None, [-1, -1, -1]),
        (2, [2, 2, 2]),
        (np.array(2), [2, 2, 2]),
        (-1, [-1, -1, -1]),
        (range(3), [0, 1, 2]),
        (np.array([1, 1, 0]), [1, 1, 0]),
        ('dog', [1, 1, 1]),
        (['dog', 'cat', 2], [1, 0, 2]),
    ],
)
def test_labels(labels, expected):
    batch = inputs.label_batch(labels, 3, 3, lambda: ('cat', 'dog', 'fox'))
    assert batch.dtype == np.int32
    np.testing.assert_array_equal(batch, expected)


@pytest.mark.parametrize(
    ('labels', 'words'),
    [
        ('dgo', "there is no class 'dgo'; did you mean 'dog'"),
        (3, r'must lie in 0\.\.2'),
        ([0, 1], 'one per row'),
        (True, 'labels must'),
        (1.5, 'labels must'),
    ],
)
def test_labels_that_are_none_of_the_model(labels, words):
    with pytest.raises(InputError, match=words):
        inputs.label_batch(labels, 3, 3, lambda: ('cat', 'dog', 'fox'))


def test_names_that_nobody_knows():
    with pytest.raises(InputError, match='names of the classes are not known; give numbers, not'):
        inputs.label_batch('a', 3, 3)


def test_levels_that_were_not_scaled_are_told(caplog):
    inputs.image_batch(127.5 * PIXELS + 127.5, SHAPE)
    assert 'images reach' in caplog.text
    assert 'should lie in [-1, 1]' in caplog.text


def test_keys():
    key = jax.random.key(3)
    for given in 3, np.int64(3), key, jax.random.PRNGKey(3):
        assert (jax.random.key_data(as_key(given)) == jax.random.key_data(key)).all()
    for given in -1, 1.5, 'a', None, jax.random.split(key), 2**31:
        with pytest.raises(InputError, match='key'):
            as_key(given)


@pytest.mark.parametrize('label', [np.array('dog'), np.array(1), jax.numpy.int32(1)])
def test_a_label_for_all_images_may_be_an_array(label):
    labels = inputs.label_batch(label, 2, 3, lambda: ('cat', 'dog', 'fox'))
    np.testing.assert_array_equal(labels, [1, 1])


def test_a_large_number_is_no_label():
    with pytest.raises(InputError, match=r'must lie in 0\.\.2'):
        inputs.label_batch(np.array(2**32 + 1), 2, 3)


def test_a_label_for_all_images_may_be_traced():
    labels = jax.jit(lambda label: inputs.label_batch(label, 2, 3))(np.int32(1))
    np.testing.assert_array_equal(labels, [1, 1])
