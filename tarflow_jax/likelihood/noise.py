"""The noise on images, under which integer pixel levels have a density."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from tarflow_jax.values import Choice, Real

NOISE_TYPES = ('gaussian', 'uniform')
STD = Real(0, 10, above=True)  # of pixels, which span a range of 2


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
        if self.type == 'gaussian':
            STD.check('noise.std', self.std)

    def add(self, key, levels):
        """Levels (integers in [0, num_levels), [B, H, W, C]) as noisy pixels, float32."""
        levels = levels.astype(jnp.float32)
        if self.type == 'uniform':
            offset = jax.random.uniform(key, levels.shape)
            return 2 * (levels + offset) / self.num_levels - 1
        pixels = 2 * levels / (self.num_levels - 1) - 1
        return pixels + self.std * jax.random.normal(key, levels.shape)

    def bits_per_dim(self, nats_per_dim):
        """Nats per dimension of a density on [-1, 1] as bits for each of `num_levels` bins there.

        Exact for any density; a bound on a code length for uniform noise only.
        """
        return (nats_per_dim + math.log(self.num_levels / 2)) / math.log(2)
