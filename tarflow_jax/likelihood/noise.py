"""The noise on images, under which integer pixel levels have a density."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tarflow_jax.values import Choice, Float, Integer

STD = Float(0, 10, exclude_low=True)  # of pixels, which span a range of 2
LEVELS = Integer(2, 256)


@dataclasses.dataclass(frozen=True)
class Noise:
    """How integer pixel levels become the real numbers whose density is learned.

    'gaussian' puts level v at 2v / (num_levels - 1) - 1, so that levels span [-1, 1], and adds
    noise of standard deviation `std` (paper, section 3.2). 'uniform' spreads it evenly over its own
    bin of width 2 / num_levels; the density then bounds the levels' probability from below.
    """

    type: str
    std: float
    num_levels: int

    def __post_init__(self):
        Choice(NOISE_TYPES).check('noise.type', self.type)
        checked: dict[str, int | float] = {
            'num_levels': LEVELS.check('num_levels', self.num_levels)
        }
        if self.type == 'gaussian':
            checked['std'] = STD.check('noise.std', self.std)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def add(self, key, levels):
        """Levels (integers in [0, num_levels), [B, H, W, C]) as noisy pixels, float32."""
        return _ADD[self.type](self, key, levels.astype(jnp.float32))

    def bits_per_dim(self, nats_per_dim):
        """Nats per dimension of a density on [-1, 1] as bits for each of `num_levels` bins there.

        Exact for any density; a bound on a code length for uniform noise only.
        """
        return (nats_per_dim + math.log(self.num_levels / 2)) / math.log(2)


def _add_gaussian(noise: Noise, key, levels):
    pixels = 2 * levels / (noise.num_levels - 1) - 1
    return pixels + noise.std * jax.random.normal(key, levels.shape, jnp.float32)


def _add_uniform(noise: Noise, key, levels):
    offset = jax.random.uniform(key, levels.shape, jnp.float32)
    return 2 * (levels + offset) / noise.num_levels - 1


_ADD = {'gaussian': _add_gaussian, 'uniform': _add_uniform}
NOISE_TYPES = tuple(_ADD)


class TypeAndStd(NamedTuple):
    """What a model's noise was: 'gaussian' or 'uniform', and its standard deviation.

    In pixels, which span a range of 2; 0 for uniform noise.
    """

    type: str
    std: float


def type_and_std(noise_type: str, std: float) -> TypeAndStd:
    """The type and the standard deviation, which is 0 for uniform noise whatever a config has."""
    return TypeAndStd(noise_type, 0.0 if noise_type == 'uniform' else std)


def agree_rounded(a: tuple[str, float], b: tuple[str, float]) -> bool:
    """Whether two noises are the same to the two digits of a published file's name."""
    return (a[0], f'{a[1]:.2f}') == (b[0], f'{b[1]:.2f}')
