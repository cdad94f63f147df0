"""The quality of samples: their features compared with those of a data set."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tarflow_jax.data.dataset import ArraySplit
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation.distances import (
    InceptionScore,
    frechet_distance,
    perfect_frechet_distance,
    precision_recall,
)
from tarflow_jax.evaluation.features import Features, to_8_bits
from tarflow_jax.evaluation.metrics import (
    FAMILIES,
    FAMILY,
    MIN_IMAGES,
    ROW_FEATURES,
    SAMPLE_METRICS,
)
from tarflow_jax.evaluation.moments import Gaussian, Moments
from tarflow_jax.evaluation.references import Reference
from tarflow_jax.likelihood.scores import scored_batches
from tarflow_jax.parallel import arrays

KEPT_ROWS = 10_000  # of a reference's features, for precision and recall; as many as ADM's have
_FINGERPRINT_IMAGES = 1024  # of a split on disk


class Batch(NamedTuple):
    """Images to be measured.

    Attributes:
      images: uint8 [B, H, W, C], over the mesh.
      index: numbers of the images [B].
      mask: False for padding [B].
    """

    images: Any
    index: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass
class Measurements:
    """Measurements of all images of all processes; every process has them."""

    gaussians: dict[str, Gaussian]
    rows: dict[str, np.ndarray]
    inception_score: tuple[float, float] | None = None


def measure(
    batches: Iterable[Batch],
    features: Sequence[Features],
    mesh,
    *,
    num_images: int,
    keep: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Measurements:
    """Computes the features of images, and sums them up; every process its own rows.

    Args:
      batches: the batches of images, the same in every process.
      features: the features to compute, a family each.
      mesh: the devices.
      num_images: how many images all batches have.
      keep: index [n] -> bool [n]: rows to keep; by default none.
    """
    sums = _Sums(num_images)
    for batch in batches:
        rows = arrays.local_rows(mesh, len(batch.index))
        counts = batch.mask[rows]
        index = batch.index[rows][counts]
        chosen = keep(index) if keep else np.zeros(len(index), bool)
        for compute in features:
            rows_by_name = arrays.fetch_rows(compute(batch.images))
            for name, values in rows_by_name.items():
                sums.add(name, values[counts], index, chosen)
    return sums.total()


class _Sums:
    """What a process has measured so far."""

    def __init__(self, num_images: int):
        self._num_images = num_images
        self._moments: dict[str, Moments] = {}
        self._kept: dict[str, list[np.ndarray]] = {}
        self._kept_index: dict[str, list[np.ndarray]] = {}
        self._score: InceptionScore | None = None

    def add(self, name: str, values: np.ndarray, index: np.ndarray, chosen: np.ndarray) -> None:
        """Adds features [n, D] of the images of these numbers [n], and keeps the chosen ones."""
        if name == 'logits_unbiased':
            self._score = self._score or InceptionScore(self._num_images, values.shape[1])
            self._score.add(values, index)
            return
        self._moments.setdefault(name, Moments(values.shape[1])).add(values)
        if name in ROW_FEATURES:
            self._kept.setdefault(name, []).append(values[chosen])
            self._kept_index.setdefault(name, []).append(index[chosen])

    def total(self) -> Measurements:
        return Measurements(
            {name: moments.gaussian() for name, moments in self._moments.items()},
            {
                name: _gather_in_order(np.concatenate(kept), np.concatenate(self._kept_index[name]))
                for name, kept in self._kept.items()
            },
            self._score.score() if self._score else None,
        )


def _gather_in_order(rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The rows [n, D] of all processes, which have different n, by the number of their image."""
    counts = arrays.gather_rows(np.array([len(rows)], np.int32))
    missing = counts.max() - len(rows)
    index = arrays.gather_rows(np.pad(index, (0, missing), constant_values=-1))
    rows = arrays.gather_rows(np.pad(rows, [(0, missing), (0, 0)]))
    order = np.argsort(index, kind='stable')
    return rows[order[np.sum(index < 0) :]]


def measure_split(
    split,
    num_levels: int,
    features: Features,
    mesh,
    *,
    batch_size: int,
    flip: bool,
    before_batch: Callable[[], object] = lambda: None,
) -> Reference:
    """Statistics of a split, every image exactly once.

    Args:
      split: a split of a data set, of at least two images.
      num_levels: how many levels its pixels have, the integers from 0.
      features: the features to compute, those of one family.
      mesh: the devices, of all processes.
      batch_size: images at a time; does not change the result.
      flip: whether every image counts a second time, mirrored left to right. This is the average
        over the random flips with which the published statistics were made.
      before_batch: a function that is called before each batch; its exceptions end the pass.

    Returns:
      A reference without metadata. Features are kept of at most `KEPT_ROWS` images, evenly spread.
    """
    num_images = len(split)
    chosen = np.arange(min(KEPT_ROWS, num_images)) * num_images // min(KEPT_ROWS, num_images)

    def batches() -> Iterator[Batch]:
        for batch in scored_batches(split, mesh, batch_size, before_batch):
            images = to_8_bits(batch['image'], num_levels)
            index = arrays.fetch(batch['index'])
            yield Batch(images, index, batch['mask'])
            if flip:
                yield Batch(_mirror(images), index + num_images, batch['mask'])

    def keep(index):
        return np.isin(index, chosen)

    count = num_images * (1 + flip)
    measured = measure(batches(), [features], mesh, num_images=count, keep=keep)
    return Reference(measured.gaussians, measured.rows)


@jax.jit
def _mirror(images):
    return images[:, :, ::-1]


def with_missing_features(
    reference: Reference,
    names: Iterable[str],
    features: Features,
    mesh,
    before_batch: Callable[[], object] = lambda: None,
) -> Reference:
    """Adds the features that metrics need to a reference from a file, computed from its images.

    Raises:
      InputError: the file lacks what a metric needs.
    """
    kinds = {
        SAMPLE_METRICS[name] for name in names if FAMILY.get(SAMPLE_METRICS[name][0]) == 'inception'
    }
    missing = [
        kind
        for kind, comparison in kinds
        if comparison == 'frechet' and kind not in reference.gaussians
    ]
    if ('pool', 'neighbours') in kinds and 'pool' not in reference.rows:
        if reference.images is None or len(reference.images) < MIN_IMAGES:
            missing.append('images, or features of single ones')
        else:
            split = ArraySplit(reference.images, np.full(len(reference.images), -1, np.int32))
            of_inception = features.subset(FAMILIES['inception'])
            settings = dict(batch_size=64, flip=False, before_batch=before_batch)
            measured = measure_split(split, 256, of_inception, mesh, **settings)
            reference = dataclasses.replace(reference, rows=measured.rows)
    if missing:
        raise InputError(
            f'{reference.path} has no {", no ".join(missing)}: sfid needs spatial statistics, '
            'precision and recall need images. Take these metrics out of evaluate.metrics, or '
            "set evaluate.reference='' for a reference of the training images."
        )
    return reference


def fingerprint(split) -> str:
    """A hash of a split's images: all of one in memory, or else some and their number.

    It changes when a data set is rebuilt from other images.
    """
    count = len(split) if split.in_memory else _FINGERPRINT_IMAGES
    index = np.arange(count) * len(split) // count
    images = split.__getitems__(np.unique(index))['image']
    digest = hashlib.sha256(images.tobytes() + str(len(split)).encode())
    return digest.hexdigest()[:16]


def score(
    samples: Measurements, references: dict[str, Reference], names: Iterable[str]
) -> dict[str, float]:
    """The metrics of measured samples.

    Args:
      samples: the measurements of the samples.
      references: the references that the metrics need, by family, see `FAMILIES`.
      names: the metrics, keys of `SAMPLE_METRICS`.
    """
    scores: dict[str, float] = {}
    for name in names:
        kind, comparison = SAMPLE_METRICS[name]
        if comparison == 'score' and samples.inception_score:
            scores['inception_score'], scores['inception_score_std'] = samples.inception_score
            continue
        reference = references[FAMILY[kind]]
        if comparison == 'frechet':
            gaussian = reference.gaussians[kind]
            scores[name] = frechet_distance(gaussian, samples.gaussians[kind])
        elif name not in scores:
            pair = [
                other for other in SAMPLE_METRICS if SAMPLE_METRICS[other] == SAMPLE_METRICS[name]
            ]
            both = precision_recall(reference.rows[kind], samples.rows[kind])
            scores |= zip(pair, both, strict=True)
    return scores


def warnings_of_few(name: str, reference: Reference, num_samples: int) -> list[str]:
    """Says that a Frechet distance is biased if samples or reference images are too few."""
    kind, comparison = SAMPLE_METRICS[name]
    if comparison != 'frechet':
        return []
    gaussian, warnings = reference.gaussians[kind], []
    num_features = len(gaussian.mean)
    num_images = reference.metadata.get('num_images', num_features + 1)
    if num_images * (1 + reference.metadata.get('flip', False)) <= num_features:
        warnings.append(
            f'{name} against {num_images} images with {num_features} features: the covariance of '
            'the reference is singular.'
        )
    if num_samples <= num_features:
        bias = perfect_frechet_distance(gaussian, num_samples)
        warnings.append(
            f'{name} of {num_samples} samples with {num_features} features: their covariance is '
            'singular, and even samples of a perfect model would score about '
            f'{bias:.{1 if bias > 1 else 3}f}. Draw more (evaluate.num_samples), and compare only '
            'figures of equal numbers.'
        )
    return warnings
