"""Mean and covariance of features, from sums in float64."""

from typing import NamedTuple

import numpy as np

from tarflow_jax.parallel import arrays


class Gaussian(NamedTuple):
    """Mean and covariance of features, from which a Frechet distance is computed.

    Attributes:
      mean: float64 [D].
      cov: float64 [D, D], with N - 1 in the denominator.
    """

    mean: np.ndarray
    cov: np.ndarray


class Moments:
    """Sums of features and of their products, over batches and over processes.

    Features arrive in float32; products and sums are float64, so that the size and the order of
    batches show in the last digits only.
    """

    def __init__(self, num_features: int):
        self._count = 0
        self._sum = np.zeros(num_features)
        self._products = np.zeros((num_features, num_features))

    def add(self, features: np.ndarray) -> None:
        """Adds features [n, D]."""
        features = features.astype(np.float64)
        self._count += len(features)
        self._sum += features.sum(axis=0)
        self._products += features.T @ features

    def gaussian(self) -> Gaussian:
        """Mean and covariance of all that was added, in all processes.

        Collective: every process must call it. Raises ValueError for fewer than two rows.
        """
        count, total, products = arrays.sum_float64(
            (np.array(self._count, np.float64), self._sum, self._products)
        )
        return gaussian_of_sums(int(count), total, products)


def gaussian_of_sums(count: int, total: np.ndarray, products: np.ndarray) -> Gaussian:
    """From the number of rows, their sum [D], and the sum of their outer products [D, D]."""
    if count < 2:
        raise ValueError(f'a covariance needs two rows or more; got {count}.')
    mean = total / count
    return Gaussian(mean, (products - count * np.outer(mean, mean)) / (count - 1))
