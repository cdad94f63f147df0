"""Pixels keep their values, on the way to 8 bits, to a grid and to a file."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tarflow_jax.imagefiles import (
    encode_png,
    image_grid,
    npz_writer,
    to_uint8,
    write_npz,
    write_png,
)


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def decode_png(data):
    """The pixels of a PNG file, uint8 [H, W, C]."""
    image = np.asarray(Image.open(io.BytesIO(data)))
    return image[..., None] if image.ndim == 2 else image


@pytest.mark.parametrize('last_level', [255, 16])
def test_every_level_comes_back(last_level):
    levels = np.arange(last_level + 1)
    images = (levels / np.float32(last_level) * 2 - 1).astype(np.float32)
    np.testing.assert_array_equal(to_uint8(images), np.rint(levels * 255 / last_level))


@pytest.mark.parametrize(
    ('value', 'expected'),
    [(-1, 0), (1, 255), (0, 128), (-7, 0), (7, 255), (-np.inf, 0), (np.inf, 255), (np.nan, 128)],
)
def test_values_are_clipped_and_rounded(value, expected):
    assert to_uint8(np.float32([value])) == [expected]


def test_jax_arrays_of_any_float_are_taken():
    for dtype in (jnp.float32, jnp.bfloat16):
        assert to_uint8(jnp.full((1, 2, 2, 3), 1, dtype)).tolist() == [[[[255] * 3] * 2] * 2]


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
    ('count', 'expected'),
    [(1, (1, 1)), (2, (1, 2)), (7, (3, 3)), (10, (3, 4)), (100, (10, 10))],
)
def test_each_image_has_its_place(count, expected, channels):
    images = random_images(count, 64, 64, channels)
    grid = image_grid(images)
    assert grid.ndim == (2 if channels == 1 else 3)
    grid = grid.reshape(*grid.shape[:2], channels)
    rows, columns = expected
    assert grid.shape == (rows * 66 - 2, columns * 66 - 2, channels)
    for index in range(rows * columns):
        top, left = index // columns * 66, index % columns * 66
        cell = grid[top : top + 64, left : left + 64]
        np.testing.assert_array_equal(cell, images[index] if index < count else 128)


def test_a_grid_is_nearly_a_square():
    for height, width in [(64, 64), (64, 128), (200, 64)]:
        for count in (16, 50, 81):
            rows, columns, _ = image_grid(random_images(count, height, width, 3)).shape
            assert abs(rows - columns) <= 1.1 * max(height, width)


def test_separators_are_grey():
    images = random_images(4, 64, 64, 3)
    grid = image_grid(images)
    assert (grid[64:66] == 128).all()
    assert (grid[:, 64:66] == 128).all()


def test_small_images_grow_by_whole_pixels():
    images = random_images(1, 8, 8, 1)
    grid = image_grid(images)
    assert grid.shape == (64, 64)
    np.testing.assert_array_equal(grid[::8, ::8], images[0, :, :, 0])
    np.testing.assert_array_equal(grid, grid[::8, ::8].repeat(8, 0).repeat(8, 1))


@pytest.mark.parametrize(
    'images',
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_what_is_no_batch_of_images_is_refused_with_its_shape(images):
    with pytest.raises(ValueError, match=r'\[' + ', '.join(map(str, images.shape))):
        image_grid(images)


@pytest.mark.parametrize('channels', [1, 3])
def test_captions_stand_over_columns_of_their_own(channels):
    """Each word's column holds every so-many-th image, and the words are above the same grid."""
    images = random_images(20, 64, 64, channels)
    plain, headed = image_grid(images[:18]), image_grid(images[:18], ['cat', 'dog', 'wild'])
    height = headed.shape[0] - 3 * 66 + 2
    assert headed.shape[1] == 6 * 66 - 2
    grid, headings = headed[height:], headed[:height]
    for index in range(18):
        top, left = index // 6 * 66, index % 6 * 66
        cell = grid[top : top + 64, left : left + 64].reshape(64, 64, channels)
        np.testing.assert_array_equal(cell, images[index])
        words = [headings[:, left : left + 64], headings[:, index % 3 * 66 : index % 3 * 66 + 64]]
        np.testing.assert_array_equal(*words)
        assert (words[0] != 128).any()
    assert plain.shape != headed.shape


def test_a_caption_stays_over_its_column():
    images = random_images(4, 64, 64, 1)
    long, short = (image_grid(images, [word, 'dog']) for word in ('abyssinian ground hornbill', ''))
    np.testing.assert_array_equal(long[:, 66:], short[:, 66:])
    assert (long[:18, :64] != short[:18, :64]).any()


@pytest.mark.parametrize('shape', [(5, 7), (5, 7, 1), (5, 7, 3), (1, 1)])
def test_a_png_has_the_pixels(tmp_path, shape):
    image = random_images(*shape)
    write_png(tmp_path / 'image.png', image)
    decoded = decode_png((tmp_path / 'image.png').read_bytes())
    np.testing.assert_array_equal(decoded, image.reshape(*shape[:2], -1))


def test_a_png_is_the_same_each_time():
    assert encode_png(random_images(9, 9, 3)) == encode_png(random_images(9, 9, 3))


def test_a_refused_png_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match='float64'):
        write_png(tmp_path / 'image.png', np.zeros((4, 4, 3)))
    assert not list(tmp_path.iterdir())


def test_an_npz_has_the_arrays_and_is_the_same_each_time(tmp_path):
    arrays = {'arr_0': random_images(4, 8, 8, 1), 'arr_1': np.arange(4, dtype=np.int32)}
    for name in ('one.npz', 'two.npz'):
        write_npz(tmp_path / name, **arrays)
    with np.load(tmp_path / 'one.npz') as read:
        assert set(read) == set(arrays)
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)
    assert (tmp_path / 'one.npz').read_bytes() == (tmp_path / 'two.npz').read_bytes()


@pytest.mark.parametrize('labels', [None, np.arange(5, dtype=np.int32)])
def test_many_images_in_a_file_batch_by_batch(tmp_path, labels):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3)).astype(np.uint8)
    path = tmp_path / 'samples' / 'many.npz'
    with npz_writer(path, images.shape, labels) as write:
        write(images[:2])
        write(images[4:1:-1][::-1])  # not contiguous
        assert not path.exists()
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays['arr_0'], images)
        assert ('arr_1' in arrays) == (labels is not None)
        if labels is not None:
            np.testing.assert_array_equal(arrays['arr_1'], labels)


def test_too_few_images_make_no_file(tmp_path):
    images = np.zeros((2, 4, 6, 3), np.uint8)
    with (
        pytest.raises(ValueError, match='got 2 images, not the 5'),
        npz_writer(tmp_path / 'many.npz', (5, 4, 6, 3)) as write,
    ):
        write(images)
    assert list(tmp_path.iterdir()) == []
