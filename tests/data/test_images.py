import io
import os
import pathlib
import struct
import tracemalloc
import zlib

import numpy as np
import PIL
import pytest
from image_trees import KINDS, SUFFIXES, as_pillow_sees, write_image
from PIL import EpsImagePlugin, Image

from tarflow_jax.data.images import FORMATS, MAX_PIXELS, decode, resize_and_crop


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


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
%%EOF
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The names of programs that were started, of those that Pillow might start."""
    for name in 'gs', 'gswin64c', 'djpeg', 'cjpeg', 'ppmtogif', 'netpbm':
        program = tmp_path / 'bin' / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\ntouch {tmp_path}/started_$(basename "$0")\n')
        program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)  # as at Pillow's start
    return lambda: [path.name for path in tmp_path.glob('started_*')]


def test_an_eps_starts_no_program(tmp_path, programs):
    (tmp_path / 'cat.png').write_bytes(EPS)
    with pytest.raises(PIL.UnidentifiedImageError):
        decode(tmp_path / 'cat.png')
    assert programs() == []

    with pytest.raises(PIL.UnidentifiedImageError), Image.open(tmp_path / 'cat.png') as image:
        image.load()  # so it would have
    assert programs()


@pytest.mark.parametrize('file_format', ['ICO', 'TGA', 'PCX', 'SGI', 'DDS', 'EPS', 'SPIDER'])
def test_a_format_that_nobody_asked_for_is_refused(file_format):
    mode = 'F' if file_format == 'SPIDER' else 'RGB'
    data = encoded(Image.new(mode, (16, 16)), file_format)
    with pytest.raises(PIL.UnidentifiedImageError):
        decode(data)


@pytest.mark.parametrize('file_format', FORMATS)
def test_every_format_is_decoded(file_format):
    """Smooth pixels, as some of the formats lose a little; the size of the first frame."""
    image = Image.linear_gradient('L').convert('RGB').resize((40, 30))
    pixels = np.asarray(decode(encoded(image, file_format)))
    assert np.abs(pixels.astype(int) - np.asarray(image)).max() <= 8


def png_of(width, height, *chunks):
    """A PNG that claims a size and has no pixels to speak of."""
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    parts = [(b'IHDR', header), *chunks, (b'IDAT', zlib.compress(bytes(1000))), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in parts
    )


@pytest.mark.filterwarnings('ignore:Image size')  # Pillow warns of them, too
def test_too_many_pixels_are_refused_before_they_are_decoded():
    side = 9500
    assert side**2 > MAX_PIXELS
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match='9500x9500 pixels, more than 89,478,485'):
            decode(png_of(side, side))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings('ignore:Image size')  # Pillow's, of the 100 million pixels
@pytest.mark.parametrize('data', [png_of(2**31 - 1, 2**31 - 1), png_of(20_000, 20_000)])
def test_pixels_beyond_pillows_own_bound_are_refused(data):
    with pytest.raises(ValueError, match=r'DecompressionBomb|pixels'):
        decode(data)


@pytest.mark.parametrize('kind', [b'zTXt', b'iTXt', b'iCCP'])
def test_text_that_unpacks_to_much_is_bounded(kind):
    between = b'\x01\x00\x00\x00' if kind == b'iTXt' else b'\x00'
    text = b'name\x00' + between + zlib.compress(bytes(50 * 2**20))
    assert len(text) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises((OSError, ValueError)):
            decode(png_of(8, 8, *[(kind, text)] * 2))
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'cat.png')
    with pytest.raises(ValueError, match='it is not a file, but a FIFO'):
        decode(tmp_path / 'cat.png')
