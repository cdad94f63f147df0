"""The inputs of the golden values: weights, images and features that a rule makes.

They are too large to keep. Every number comes from the bits of a Philox counter keyed by a name,
which no version of NumPy changes, and from arithmetic that is exact or nearly so.
"""

import hashlib
import math

import numpy as np

IMAGE_SIZES = (32, 64, 256, 299)
IMAGES_PER_SIZE = 2
EDGE_SHAPES = ((17, 301), (400, 33))  # for the resizes alone, height by width


def bits(name, count):
    """`count` random uint32 of that name."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], 'little')
    return np.random.Philox(key=key).random_raw(-(-count // 2)).view('<u4')[:count]


def uniform(name, shape):
    """Float32 in [-1, 1), exact multiples of 2^-23."""
    whole = (bits(name, math.prod(shape)) >> 8).astype(np.float32)
    return (whole * np.float32(2**-23) - 1).reshape(shape)


def normal(name, shape):
    """Float64, nearly normal: the sum of twelve uniform numbers."""
    whole = (bits(name, 12 * math.prod(shape)) >> 8).reshape(12, *shape)
    return whole.sum(axis=0, dtype=np.int64) / 2**24 - 6


def tensor(name, shape):
    """A tensor of the network's state dict, by its published name.

    Kernels of variance 2 / inputs keep activations near 1 through all layers of ReLUs, without
    making more of a rounding error than of anything else.
    """
    draws = uniform(name, shape)
    match name.rsplit('.', 2)[-2:]:
        case ['fc', 'weight']:
            return draws * np.float32(0.1)
        case ['conv', 'weight']:
            return draws * np.float32(math.sqrt(3 * 2 / math.prod(shape[1:])))
        case ['bn', 'weight' | 'running_var']:
            return 1 + draws * np.float32(0.3)
        case _:  # biases and means
            return draws * np.float32(0.3)


def images(height, width, name='image', count=IMAGES_PER_SIZE):
    """Uint8 [count, height, width, 3]: bilinear between 5 x 5 random levels, and noise."""
    shape = f'{name} {height}x{width}'
    levels = (bits(f'{shape} levels', count * 5 * 5 * 3) >> 24).reshape(count, 5, 5, 3)
    for axis, size in ((1, height), (2, width)):
        place = np.arange(size) * 4
        low = np.minimum(place // size, 3)
        weight = (place - low * size).reshape(-1, *[1] * (3 - axis))
        low_levels, high_levels = levels.take(low, axis), levels.take(low + 1, axis)
        levels = low_levels.astype(np.int64) * (size - weight) + high_levels * weight
    noise = (bits(f'{shape} noise', levels.size) >> 26).reshape(levels.shape).astype(np.int64)
    return np.clip(levels // (height * width) + noise - 32, 0, 255).astype(np.uint8)


def image_sets():
    """Two sets of images that differ in how their levels are spread, uint8 [8, 64, 64, 3]."""
    first, second = images(64, 64, 'first', 8), images(64, 64, 'second', 8)
    return first, second // 2 + 64


# Of the metrics: name of a case to its sets of features, float64 [samples, dims].


def fid_features(dims, samples):
    """Two sets that differ in mean and covariance, of features that are never negative."""
    mix = normal(f'mix {dims}', (dims, dims)) / math.sqrt(dims)
    first = normal(f'first {samples}x{dims}', (samples, dims))
    second = normal(f'second {samples}x{dims}', (samples, dims)) @ mix + 0.3
    return np.abs(first), np.abs(second)


def score_logits(samples):
    """Logits of 1,008 classes, of which a few stand out."""
    return 1.5 * normal(f'logits {samples}', (samples, 1008))


def neighbour_features(samples):
    """Generated and real features of 16 dimensions that overlap in part."""
    generated = normal(f'generated {samples}', (samples, 16))
    real = normal(f'real {samples}', (samples, 16))
    generated[:, 0] = 0.5 * generated[:, 0] + 1
    return generated, real
