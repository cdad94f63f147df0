"""How far samples are from a reference, computed from their features.

The Frechet distance is that of Heusel et al. 2017 (1706.08500), the Inception score that of
Salimans et al. 2016 (1606.03498), precision and recall those of Kynkäänniemi et al. 2019
(1904.06991).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.evaluation.moments import Gaussian
from tarflow_jax.parallel import arrays

NEIGHBOURS = 3  # k of precision and recall
_ROWS = 1024  # of a table of distances that is in memory at once


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) for covariances A and B, in float64.

    tr (A B)^(1/2) is the sum of the square roots of the eigenvalues of C' B C, where A = C C':
    that is symmetric, so nothing complex appears, and no larger than the rank of A.
    """
    values, vectors = np.linalg.eigh(a.cov)  # of 2,048 features, seconds on a laptop
    is_positive = values > values[-1] * len(values) * np.finfo(np.float64).eps
    root = vectors[:, is_positive] * np.sqrt(values[is_positive])
    trace = np.trace(a.cov) + np.trace(b.cov)
    trace -= 2 * _sum_of_roots(np.linalg.eigvalsh(root.T @ b.cov @ root))
    return float(np.sum((a.mean - b.mean) ** 2) + trace)


def perfect_frechet_distance(reference: Gaussian, num_samples: int, seed: int = 0) -> float:
    """The Frechet distance of samples from the reference's own Gaussian: the bias of few samples.

    For samples x = A^(1/2) e with covariance B, the nonzero eigenvalues of A^(1/2) B A^(1/2) are
    those of Z A A Z', where the rows of Z [num_samples, D] are the centred draws e, divided by the
    square root of num_samples - 1.
    """
    draws = np.random.default_rng(seed).standard_normal((num_samples, len(reference.mean)))
    mean = draws.mean(axis=0)
    centred = (draws - mean) / np.sqrt(num_samples - 1)
    products = centred @ reference.cov
    trace = np.trace(reference.cov) + np.sum(centred * products)
    trace -= 2 * _sum_of_roots(np.linalg.eigvalsh(products @ products.T))
    return float(mean @ reference.cov @ mean + trace)


def _sum_of_roots(eigenvalues: np.ndarray) -> float:
    return float(np.sqrt(eigenvalues.clip(min=0)).sum())


class InceptionScore:
    """exp E KL(p(y | x) || p(y)), for parts of the samples, batch by batch.

    Args:
      num_samples: how many samples there are in all parts.
      num_classes: how many classes the classifier has.
      num_parts: how many consecutive parts are scored, for the mean and the spread of the score.
    """

    def __init__(self, num_samples: int, num_classes: int, num_parts: int = 10):
        self._num_samples = num_samples
        self._counts = np.zeros(num_parts)
        self._probs = np.zeros((num_parts, num_classes))
        self._negentropy = np.zeros(num_parts)

    def add(self, logits: np.ndarray, index: np.ndarray) -> None:
        """Adds the classifier's logits [n, classes] for the samples of the given numbers [n]."""
        logits = logits.astype(np.float64)
        log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        probs = np.exp(log_probs)
        # Part p holds the numbers from floor(p N / P) to floor((p + 1) N / P), as elsewhere.
        part = -(-(index.astype(np.int64) + 1) * len(self._counts) // self._num_samples) - 1
        np.add.at(self._counts, part, 1)
        np.add.at(self._probs, part, probs)
        np.add.at(self._negentropy, part, (probs * log_probs).sum(axis=1))

    def score(self) -> tuple[float, float]:
        """Mean and standard deviation over the parts, of all processes.

        Collective: every process must call it.
        """
        counts, probs, negentropy = arrays.sum_float64(
            (self._counts, self._probs, self._negentropy)
        )
        filled = counts > 0  # with fewer samples than parts, some have none
        probs = probs[filled] / counts[filled, None]
        entropy = -np.sum(probs * np.log(probs.clip(min=1e-300)), axis=1)
        scores = np.exp(negentropy[filled] / counts[filled] + entropy)
        return float(scores.mean()), float(scores.std())


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Fractions of samples that look real, and of the reference that samples cover.

    A point is covered by a set if it lies within the distance from any of its members to that
    member's k-th nearest neighbour in the set.

    Args:
      reference: features [R, D] with R > k.
      samples: features [N, D] with N > k.
      k: the neighbour whose distance is a member's radius.

    Returns:
      precision, the fraction of samples that the reference covers, and recall, the fraction of the
      reference that the samples cover; both in [0, 1].
    """
    real, drawn = jnp.asarray(reference), jnp.asarray(samples)
    precision, recall = _covered(drawn, real, k), _covered(real, drawn, k)
    return float(np.mean(np.asarray(precision))), float(np.mean(np.asarray(recall)))


@functools.partial(jax.jit, static_argnames='k')
def _covered(points, members, k):
    """Whether the members [N, D] cover each of the points [M, D]."""

    def radius(member):  # squared
        return -jax.lax.top_k(-_squared_distances(member, members), k + 1)[0][k]  # 0 is itself

    radii = jax.lax.map(radius, members, batch_size=_ROWS)
    return jax.lax.map(
        lambda point: (_squared_distances(point, members) <= radii).any(),
        points,
        batch_size=_ROWS,
    )


def _squared_distances(point, members):
    """From a point [D] to each of the members [N, D]: [N], at least 0."""
    products = jnp.matmul(members, point, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(point**2) + jnp.sum(members**2, axis=1)
    return jnp.maximum(squares - 2 * products, 0)
