import io
import pathlib

import numpy as np
import pytest
from image_trees import KINDS, SUFFIXES, as_pillow_sees, write_image
from PIL import Image

from tarflow_jax.data.images import decode, resize_and_crop


def encoded(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def triangle_weights(length, new_length):
    """Pillow's antialiased bilinear filter in one direction, [new_length, length]."""
    scale = length / new_length
    support = max(scale, 1.0)
    centres = (np.arange(new_length) + 0.5) * scale
    distances = (np.arange(length) + 0.5)[None] - centres[:, None]
    weights = np.maximum(1 - np.abs(distances) / support, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def resized_and_cropped(pixels, size):
    """Resize(size) and CenterCrop(size) from their documentation, in exact arithmetic."""
    height, width, _ = pixels.shape
    if height < width:
        new_height, new_width = size, int(size * width / height)
    else:
        new_height, new_width = int(size * height / width), size
    rows = triangle_weights(height, new_height)
    columns = triangle_weights(width, new_width)
    resized = np.einsum('yh,xw,hwc->yxc', rows, columns, pixels.astype(np.float64))
    top = round((new_height - size) / 2.0)
    left = round((new_width - size) / 2.0)
    return resized[top : top + size, left : left + size]


@pytest.mark.parametrize(
    ('height', 'width', 'size'),
    [
        (40, 56, 24),
        (56, 40, 24),
        (33, 50, 17),  # 25 pixels wide: 4 are cut on the left
        (50, 33, 18),  # 27 pixels high: 4.5 are cut above, which rounds to 4
        (64, 64, 16),
        (10, 31, 16),
        (7, 7, 20),
        (1, 9, 3),
        (200, 50, 1),
    ],
)
def test_resizing_and_cropping_as_torchvision_documents_it(height, width, size):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = resize_and_crop(Image.fromarray(pixels), size)
    assert found.shape == (size, size, 3)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, resized_and_cropped(pixels, size), atol=1.01)


@pytest.mark.parametrize(('height', 'width'), [(24, 24), (24, 35), (31, 24)])
def test_no_pixel_changes_at_the_same_size(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    top, left = round((height - 24) / 2), round((width - 24) / 2)
    found = resize_and_crop(Image.fromarray(pixels), 24)
    np.testing.assert_array_equal(found, pixels[top : top + 24, left : left + 24])


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_becomes_rgb(tmp_path, kind):
    path = tmp_path / f'{kind}_0.{SUFFIXES.get(kind, "png")}'
    write_image(path, kind)
    image = decode(path)
    assert image.mode == 'RGB'
    assert image.size == ((56, 40) if kind == 'turned' else (40, 56))
    np.testing.assert_array_equal(resize_and_crop(image, 24), as_pillow_sees(path))
    np.testing.assert_array_equal(decode(path.read_bytes()), image)
    np.testing.assert_array_equal(decode(str(path)), image)


@pytest.mark.parametrize(('orientation', 'corner'), [(1, 0), (3, 3), (6, 2), (8, 1), (2, 1)])
def test_pictures_stand_upright(orientation, corner):
    pixels = np.array([[10, 80], [150, 220]], np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(Image.fromarray(pixels), 'PNG', exif=exif))
    assert np.asarray(image)[0, 0, 0] == pixels.ravel()[corner]


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.array([[0, 128, 257, 32896, 65535]], np.uint16)
    image = decode(encoded(Image.fromarray(levels), 'PNG'))
    np.testing.assert_array_equal(np.asarray(image)[0, :, 1], [0, 0, 1, 128, 255])


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_what_is_transparent_is_white(mode):
    image = Image.new(mode, (2, 1), tuple([40] * (len(mode) - 1) + [0]))
    image.putpixel((1, 0), tuple([40] * (len(mode) - 1) + [255]))
    np.testing.assert_array_equal(
        np.asarray(decode(encoded(image, 'PNG')))[0], [[255] * 3, [40] * 3]
    )


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')  # Pillow's, of the file
def test_damaged_exif_does_not_lose_the_picture():
    image = Image.new('RGB', (4, 4), (9, 9, 9))
    data = encoded(image, 'JPEG', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff')
    assert decode(data).size == (4, 4)


@pytest.mark.parametrize('file_format', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('share', [0, 0.2, 0.9])
def test_a_truncated_image_is_an_error(file_format, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), file_format)
    with pytest.raises((OSError, ValueError)):
        decode(data[: int(share * len(data))])


@pytest.mark.parametrize('data', [b'', b'no image', bytes(1000), b'\x89PNG\r\n\x1a\n' + bytes(99)])
def test_what_is_no_image_is_an_error(data):
    with pytest.raises((OSError, ValueError)):
        decode(data)


def test_a_missing_file():
    with pytest.raises(FileNotFoundError):
        decode(pathlib.Path('/nowhere/at.png'))


def test_floating_point_levels_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / 'levels.tiff')
    with pytest.raises(ValueError, match='floating-point'):
        decode(tmp_path / 'levels.tiff')
