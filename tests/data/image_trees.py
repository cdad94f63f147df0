"""Class-folder trees of small images of every kind, for tests."""

import hashlib
import pathlib

import numpy as np
from PIL import Image

CLASSES = ('cat', 'dog', 'wild')
KINDS = ('jpeg', 'png', 'grey', 'cmyk', 'palette', 'rgba', 'deep', 'turned')
SUFFIXES = {'jpeg': 'JPEG', 'cmyk': 'jpg', 'turned': 'jpg', 'palette': 'gif'}
SIZE = 24
SIDES = (40, 56)


def write_image(path, kind, seed=0, sides=SIDES):
    """A picture of large smooth shapes, no two alike."""
    draws = np.random.default_rng([seed, *path.name.encode()])
    coarse = Image.fromarray(draws.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    image = coarse.resize(sides, Image.Resampling.BICUBIC)
    options = {}
    if kind == 'turned':
        options['exif'] = Image.Exif()
        options['exif'][0x0112] = 6  # the camera stood on its side
    elif kind == 'deep':
        image = Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * 257)
    elif kind not in ('jpeg', 'png'):
        modes = {'grey': 'L', 'cmyk': 'CMYK', 'palette': 'P', 'rgba': 'RGBA'}
        image = image.convert(modes[kind])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def as_pillow_sees(path, size=SIZE):
    """The pixels that are wanted of a file of `write_image`, by Pillow's own conversions."""
    kind = path.stem.split('_')[0]
    with Image.open(path) as image:
        if kind == 'turned':
            image = image.transpose(Image.Transpose.ROTATE_270)
        if kind == 'deep':
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = image.convert('RGB')
    width, height = image.size
    if width < height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return np.asarray(image)[top : top + size, left : left + size]


def fill(folder: pathlib.Path, count, seed=0):
    """So many images in three class folders, of all kinds in turn."""
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        suffix = SUFFIXES.get(kind, 'png')
        write_image(folder / CLASSES[i % len(CLASSES)] / f'{kind}_{i:04}.{suffix}', kind, seed)


def damage(folder: pathlib.Path):
    """Adds a truncated image and a text that claims to be one; returns their names."""
    write_image(folder / 'cat' / 'jpeg_cut.jpg', 'jpeg')
    content = (folder / 'cat' / 'jpeg_cut.jpg').read_bytes()
    (folder / 'cat' / 'jpeg_cut.jpg').write_bytes(content[:-200])
    (folder / 'dog' / 'text.jpg').write_text('no image at all')
    return ['cat/jpeg_cut.jpg', 'dog/text.jpg']


def in_order(folder: pathlib.Path, left_out=()):
    """The images of a split in the order of their records."""
    paths = [path for path in folder.glob('*/*') if path.suffix != '.txt']
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    kept = [name for name in names if name not in left_out]
    return [names[name] for name in sorted(kept, key=lambda n: hashlib.sha256(n.encode()).digest())]
