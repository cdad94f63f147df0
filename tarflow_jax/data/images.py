"""Image files as RGB pixels, resized and cropped as the published code does."""

import contextlib
import io
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile, ImageOps

from tarflow_jax.files import open_regular

# Decoded within the process. Pillow opens whatever it can, whatever the file's name, and would
# start Ghostscript for an EPS. (PPM is also PGM and PNM.)
FORMATS = ('AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
# Pillow warns above this number. A pixel takes 4 bytes, in at most five copies during conversion.
MAX_PIXELS = 89_478_485
_WHITE = (255, 255, 255, 255)


@contextlib.contextmanager
def open_image(source: bytes | str | os.PathLike[str]) -> Iterator[ImageFile.ImageFile]:
    """Opens an image of one of the `FORMATS`; its pixels are not decoded yet.

    Pillow bounds the text that a PNG has beside its pixels.

    Args:
        source: the content of an image file, or its path.

    Raises:
        OSError: the file cannot be read, or is no such image.
        ValueError: it is not a file (a FIFO, say), has too many pixels, or its content is damaged
            in another way.
    """
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f'{width}x{height} pixels, more than {MAX_PIXELS:,}')
            yield image
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # decoders raise SyntaxError, EOFError, IndexError, zlib.error, ...
        raise ValueError(f'damaged image ({type(error).__name__}: {error})') from error


def decode(source: bytes | str | os.PathLike[str]) -> Image.Image:
    """Decodes a whole image file to 8-bit RGB, standing upright as viewers show it.

    The EXIF orientation is applied, 16-bit pixels are scaled down to 8 bits, transparent pixels
    are composited onto white, and of an animation the first frame is taken.

    Args:
        source: the content of an image file, or its path.

    Returns:
        A PIL image of mode 'RGB'.

    Raises:
        OSError: the file cannot be read, is no image, or is truncated.
        ValueError: see `open_image`.
    """
    with open_image(source) as image:
        image.load()
        return upright_rgb(image)


def resize_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """Scales the shorter side to `size` (antialiased bilinear) and cuts the centre square.

    The same pixels as torchvision's Resize(size) and CenterCrop(size) on PIL images: the longer
    side becomes int(size * longer / shorter), and the crop begins at round((side - size) / 2).

    Args:
        image: an image of mode 'RGB'.
        size: side of the result in pixels, at least 1.

    Returns:
        uint8 [size, size, 3].
    """
    width, height = image.size
    shorter = min(width, height)
    width, height = int(size * width / shorter), int(size * height / shorter)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def upright_rgb(image: Image.Image) -> Image.Image:
    """Returns a picture as `decode` does: 8-bit RGB, upright, transparency over white."""
    return _rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing; the pixels may be whole
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == 'F':
        raise ValueError('floating-point pixels of unknown range')
    if image.mode.startswith('I'):
        # Pillow's own conversion of grey of 16 bits differs from version to version.
        levels = np.clip(np.rint(np.asarray(image) / 257), 0, 255)
        image = Image.fromarray(levels.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        background = Image.new('RGBA', image.size, _WHITE)
        image = Image.alpha_composite(background, image)
    return image.convert('RGB')
