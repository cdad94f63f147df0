import numpy as np
import pytest

from tarflow_jax.evaluation.moments import Moments, gaussian_of_sums


@pytest.fixture(scope='module')
def features():
    """Far from zero, so that a difference of large numbers has to be right."""
    draws = np.random.default_rng(0)
    return (draws.normal(size=(997, 12)) * np.arange(1, 13) + 100).astype(np.float32)


@pytest.mark.parametrize('sizes', [[997], [1, 996], [400, 0, 597]])
def test_mean_and_covariance_whatever_the_batches(features, sizes):
    moments = Moments(12)
    for part in np.split(features, np.cumsum(sizes)[:-1]):
        moments.add(part)
    gaussian = moments.gaussian()
    exact = features.astype(np.float64)
    np.testing.assert_allclose(gaussian.mean, exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(gaussian.cov, np.cov(exact.T), rtol=1e-9, atol=1e-9)
    assert gaussian.cov.dtype == np.float64


def test_one_row_has_no_covariance():
    with pytest.raises(ValueError, match='two rows or more; got 1'):
        gaussian_of_sums(1, np.ones(2), np.ones((2, 2)))
