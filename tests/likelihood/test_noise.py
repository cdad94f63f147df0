import math

import jax
import numpy as np
import pytest

from tarflow_jax.errors import InputError
from tarflow_jax.likelihood.noise import Noise

KEY = jax.random.key(0)


def all_levels(num_levels, copies=200):
    """Images [copies, 1, num_levels, 1] that hold every level."""
    return np.tile(np.arange(num_levels, dtype=np.uint8)[None, None, :, None], (copies, 1, 1, 1))


@pytest.mark.parametrize('num_levels', [17, 256])
def test_uniform_noise_spreads_each_level_over_its_own_bin(num_levels):
    levels = all_levels(num_levels)
    pixels = np.asarray(Noise('uniform', 0.0, num_levels).add(KEY, levels))
    assert pixels.dtype == np.float32
    place_in_bin = (pixels.astype(np.float64) + 1) * num_levels / 2 - levels
    assert -1e-4 < place_in_bin.min() < 0.01  # float32 rounds at the edge
    assert 0.99 < place_in_bin.max() < 1 + 1e-4
    assert place_in_bin.mean() == pytest.approx(0.5, abs=0.02)
    assert pixels.min() >= -1
    assert pixels.max() <= 1


@pytest.mark.parametrize('num_levels', [17, 256])
def test_gaussian_noise_surrounds_levels_that_span_minus_one_to_one(num_levels):
    levels = all_levels(num_levels)
    pixels = np.asarray(Noise('gaussian', 0.05, num_levels).add(KEY, levels))
    noise = pixels - np.linspace(-1, 1, num_levels)[None, None, :, None]
    assert noise.std() == pytest.approx(0.05, rel=0.05)
    assert abs(noise.mean()) < 4 * 0.05 / math.sqrt(noise.size)


def test_another_key_is_another_noise():
    noise = Noise('gaussian', 0.1, num_levels=17)
    levels = all_levels(17, copies=1)
    first, again, other = (noise.add(jax.random.key(n), levels) for n in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_bits_per_dim_count_bins_of_the_data_range():
    """256 bins of a density on [-1, 1]: seven bits and the nats in bits."""
    assert Noise('uniform', 0.0, 256).bits_per_dim(0.3) == pytest.approx(7 + 0.3 / math.log(2))
    for num_levels in (17, 256):
        flat_density = math.log(2)  # nats of a density of 1/2 all over [-1, 1]
        bits = Noise('uniform', 0.0, num_levels).bits_per_dim(flat_density)
        assert bits == pytest.approx(math.log2(num_levels))


@pytest.mark.parametrize(
    ('type_', 'std', 'message'),
    [
        ('laplace', 0.1, r"noise\.type must be one of gaussian, uniform; got 'laplace'"),
        ('gaussian', 0.0, r'noise\.std must be above 0; got 0\.0'),
        ('gaussian', -1.0, r'got -1\.0'),
        ('gaussian', math.nan, 'got nan'),
        ('gaussian', math.inf, r'noise\.std must be at most 10; got inf'),
        ('gaussian', '0.1', r"noise\.std must be a number; got '0\.1'"),
        (['gaussian'], 0.1, r'noise\.type must be one of gaussian, uniform; got'),
    ],
)
def test_noise_that_makes_no_sense_is_refused(type_, std, message):
    with pytest.raises(InputError, match=message):
        Noise(type_, std, num_levels=256)
