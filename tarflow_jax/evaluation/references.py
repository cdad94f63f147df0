"""Reference statistics that samples are compared with: our files and those of other packages."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from tarflow_jax.errors import InputError
from tarflow_jax.evaluation.inception import FEATURES
from tarflow_jax.evaluation.moments import Gaussian, gaussian_of_sums
from tarflow_jax.files import json_text, sha256_of, write_atomically
from tarflow_jax.formats import torchfile
from tarflow_jax.formats.npz import NpzArrays

# Keys of mean and covariance, as pytorch-fid, EDM and ADM name them, by the features they are of.
KEYS = {'pool': ('mu', 'sigma'), 'spatial': ('mu_s', 'sigma_s'), 'haar': ('mu_haar', 'sigma_haar')}
# How torchmetrics and ADM prepare images; other files with mu and sigma do not say.
_TORCH_FIDELITY_SETTINGS = {'preprocessing': 'torch-fidelity'}
_ROUNDING = 1e-5  # of a covariance in float32, relative
TORCHMETRICS = ('real_features_sum', 'real_features_cov_sum', 'real_features_num_samples')


@dataclasses.dataclass
class Reference:
    """Statistics of a set of images.

    Attributes:
      gaussians: mean and covariance by the name of the features.
      rows: features [R, D] themselves, of some of the images, for precision and recall.
      metadata: what they were made of, and how; empty for files of others, which do not say.
      images: uint8 [R, H, W, C] of an ADM reference batch, whose features are not in the file.
      path: the path of the file.
      sha256: the hash of the file's bytes.
    """

    gaussians: dict[str, Gaussian]
    rows: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    images: np.ndarray | None = None
    path: str = ''
    sha256: str = ''


def write(path: str | os.PathLike, reference: Reference) -> None:
    """Writes a file of ours, atomically: .npz with `KEYS`, which other suites read, too."""
    arrays: dict[str, Any] = {'metadata': np.array(json_text(reference.metadata))}
    for name, gaussian in reference.gaussians.items():
        arrays |= dict(zip(KEYS[name], gaussian, strict=True))
    arrays |= {f'features_{name}': rows for name, rows in reference.rows.items()}
    write_atomically(path, lambda file: np.savez(file, **arrays))


def read(path: str | os.PathLike) -> Reference:
    """The statistics in a file.

    Reads files of ours; .npz with mu and sigma, as pytorch-fid and EDM write them; ADM's reference
    batches (.npz with mu_s, sigma_s and arr_0, too); and state dicts of torchmetrics'
    FrechetInceptionDistance (.pth), which the published code makes.

    Raises:
      InputError: there is no such file, or it is damaged, or none of these.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(
            f'evaluate.reference={path}: there is no such file. Make statistics of the training '
            "images with --mode=prepare_fid, or leave evaluate.reference='' to have them made."
        )
    try:
        reference = _read_npz(path) if path.suffix == '.npz' else _read_torchmetrics(path)
    except InputError:
        raise
    except Exception as error:  # NumPy and zipfile raise nearly anything at damaged files
        raise InputError(
            f'{path} cannot be read as reference statistics: {error}. Fetch it again, or make '
            'statistics with --mode=prepare_fid.'
        ) from error
    return dataclasses.replace(reference, path=str(path), sha256=sha256_of(path))


def _read_npz(path: Path) -> Reference:
    with NpzArrays(path) as arrays:
        held = arrays.headers
        names = [name for name, keys in KEYS.items() if all(key in held for key in keys)]
        if not names:
            raise InputError(
                f'{path} holds no statistics: it has no mu and sigma. Statistics of a data set are '
                'made with --mode=prepare_fid.'
            )
        gaussians = {
            name: _checked(path, name, *map(arrays.__getitem__, KEYS[name])) for name in names
        }
        rows = {name: arrays[key] for name in names if (key := f'features_{name}') in held}
        metadata = _metadata(arrays['metadata']) if 'metadata' in held else {}
        images = arrays['arr_0'] if 'arr_0' in held else None
    for gaussian in gaussians.values():
        _check_covariance(path, gaussian)
    for name, features in rows.items():
        if features.ndim != 2 or features.shape[1] != len(gaussians[name].mean):
            raise ValueError(f'features_{name} has the shape {features.shape}')
        _check_finite(path, features)
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4):
        raise ValueError(f'arr_0 is {images.dtype} {list(images.shape)}, not images of uint8 NHWC')
    is_adm = 'mu_s' in held and 'metadata' not in held
    return Reference(gaussians, rows, _TORCH_FIDELITY_SETTINGS if is_adm else metadata, images)


def _metadata(text: np.ndarray) -> dict[str, Any]:
    metadata = json.loads(str(text))
    if not isinstance(metadata, dict):
        raise ValueError(f'its metadata is {type(metadata).__name__}, not settings by name')
    return metadata


def _checked(path: Path, name: str, mean: np.ndarray, cov: np.ndarray) -> Gaussian:
    size = FEATURES.get(name, mean.size)
    numbers = all(np.issubdtype(array.dtype, np.floating) for array in (mean, cov))
    if mean.shape != (size,) or cov.shape != (size, size) or not numbers:
        raise InputError(
            f'{path} holds statistics of shape {mean.shape} and {cov.shape}; those of the 2015 '
            f'Inception network have ({size},) and ({size}, {size}). Make them with '
            '--mode=prepare_fid.'
        )
    _check_finite(path, mean, cov)
    return Gaussian(mean.astype(np.float64), cov.astype(np.float64))


def _check_finite(path: Path, *arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise InputError(f'{path} holds statistics that are not finite; compute them again.')


def _check_covariance(path: Path, gaussian: Gaussian) -> None:
    """Raises InputError unless it is symmetric and positive semidefinite, up to rounding."""
    mean, cov = gaussian
    largest = np.abs(cov).max(initial=0)
    if np.abs(cov - cov.T).max(initial=0) > _ROUNDING * largest:
        raise InputError(f'{path} holds a covariance that is not symmetric; compute it again.')
    float64 = np.finfo(np.float64)
    of_means = float64.eps * len(mean) * float(mean @ mean)  # subtracted from products
    rounding = max(_ROUNDING * np.trace(np.abs(cov)), of_means, float64.tiny)
    try:
        np.linalg.cholesky(cov + rounding * np.eye(len(cov)))
    except np.linalg.LinAlgError:
        raise InputError(
            f'{path} holds a covariance with variances below 0; compute it again.'
        ) from None


def _read_torchmetrics(path: Path) -> Reference:
    tensors = torchfile.read_state_dict(path)
    by_end = {name.rpartition('.')[2]: tensor for name, tensor in tensors.items()}
    missing = [name for name in TORCHMETRICS if name not in by_end]
    if missing:
        raise InputError(
            f"{path} is not a state of torchmetrics' FrechetInceptionDistance: it has no "
            f'{", ".join(missing)}.'
        )
    total, products, count = (np.asarray(by_end[name], np.float64) for name in TORCHMETRICS)
    _checked(path, 'pool', total, products)
    gaussian = gaussian_of_sums(int(count), total, products)
    _check_finite(path, *gaussian)
    _check_covariance(path, gaussian)
    return Reference({'pool': gaussian}, metadata=_TORCH_FIDELITY_SETTINGS)


def check(reference: Reference, settings: dict[str, Any], image_shape) -> None:
    """Raises InputError if statistics were made with settings other than those of the samples.

    Args:
      reference: the statistics. A file with mu and sigma only has no settings, and passes.
      settings: preprocessing and weights, see `Features`.
      image_shape: (H, W, C) of the samples.
    """
    recorded_settings = reference.metadata
    expected = {**settings, 'image_shape': list(image_shape)}
    if reference.images is not None:
        recorded_settings = {**recorded_settings, 'image_shape': list(reference.images.shape[1:])}
    differences = [
        f'{key} is {recorded_settings[key]} in the reference, {value} in this evaluation'
        for key, value in expected.items()
        if key in recorded_settings and recorded_settings[key] != value
    ]
    if differences:
        raise InputError(
            f'{reference.path} cannot be used for comparison: {"; ".join(differences)}. Give '
            'another evaluate.reference, or make one with --mode=prepare_fid.'
        )
