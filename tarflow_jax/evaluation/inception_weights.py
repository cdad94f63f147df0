"""The weights of the Inception network, from the files in which they are published.

FID is defined by one set of weights, those of TensorFlow's `inception-2015-12-05.tgz`. Values from
other weights are not comparable, so every score is stored with the SHA-256 of the weights file.
"""

import functools
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tarflow_jax import downloads
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation.inception import IMAGE_SIZE, Inception
from tarflow_jax.files import sha256_of
from tarflow_jax.formats import safetensors, torchfile

# torch-fidelity's and pytorch-fid's releases: one file under two names.
ADDRESSES = (
    'https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/'
    'weights-inception-2015-12-05-6726825d.pth',
    'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
    'pt_inception-2015-12-05-6726825d.pth',
)
SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'

BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var')
BATCH_NORM_EPSILON = 1e-3


def load(path: str | os.PathLike = '') -> tuple[dict, str]:
    """Parameters of `Inception` and the SHA-256 of the file they are of.

    Args:
      path: a `.pth` state dict (pytorch-fid's, torch-fidelity's) or a `.safetensors` file with the
        same names. Where it is empty, either of the published files in the folder
        `$TARFLOW_CACHE` (`~/.cache/tarflow_jax`), which is fetched if neither is there.

    Returns:
      (params, sha256): a tree of float32 NumPy arrays, and 64 hexadecimal digits.

    Raises:
      InputError: no such file, a damaged one, or one with other tensors; or it cannot be fetched.
    """
    if os.fspath(path):
        file = Path(path).expanduser()
    else:
        try:
            file = downloads.fetch_once(downloads.cache_folder(), ADDRESSES, SHA256)
        except InputError as error:
            raise InputError(
                f'{error} Or give the file as evaluate.inception_weights; haar_frechet, '
                'haar_precision and haar_recall need no weights.'
            ) from error
    if not file.is_file():
        raise InputError(f'there is no file {file}, which should hold the weights of Inception.')
    digest = checked_digest(file)
    return from_state_dict(_read(file), source=file), digest


def _read(file: Path) -> dict[str, np.ndarray]:
    if file.suffix == '.safetensors':
        return safetensors.read(file)
    return torchfile.read_state_dict(file)


def checked_digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
      InputError: the hash does not begin with the eight digits at the end of the file's name (such
        as -6726825d.pth).
    """
    digest = sha256_of(file)
    named = re.search(r'-([0-9a-f]{8})\.\w+$', file.name)
    if named and not digest.startswith(named[1]):
        raise InputError(
            f'{file} is damaged: by its name its SHA-256 begins with {named[1]}, but it is '
            f'{digest}. Delete it, and fetch it again.'
        )
    return digest


def from_state_dict(tensors: dict[str, np.ndarray], source='the state dict') -> dict:
    """Parameters of `Inception`, float32, from arrays by their published names.

    A convolution and the batch norm after it become one convolution,
    kernel * scale / sqrt(variance + 1e-3) and bias - mean * scale / sqrt(variance + 1e-3),
    computed in float64. Tensors that the network does not read are ignored.

    Raises:
      InputError: a tensor is missing, or has another shape or type than it should.
    """
    _check(tensors, source)
    params = {}
    for path, kernel in _kernels().items():
        name = '.'.join(path)
        if kernel.ndim == 2:
            layer = {'kernel': tensors[f'{name}.weight'].T, 'bias': tensors[f'{name}.bias']}
        else:
            norm = (tensors[f'{name}.bn.{part}'] for part in BATCH_NORM)
            layer = _folded(tensors[f'{name}.conv.weight'], *norm)
        for key, array in layer.items():
            params[*path, key] = np.ascontiguousarray(array, np.float32)
    return traverse_util.unflatten_dict(params)


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that the network reads, by its published name."""
    shapes = {}
    for path, kernel in _kernels().items():
        name = '.'.join(path)
        *window, inputs, outputs = kernel.shape
        if window:
            shapes[f'{name}.conv.weight'] = (outputs, inputs, *window)
            shapes |= {f'{name}.bn.{part}': (outputs,) for part in BATCH_NORM}
        else:
            shapes |= {f'{name}.weight': (outputs, inputs), f'{name}.bias': (outputs,)}
    return shapes


@functools.cache
def _kernels() -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """The kernel, [..., inputs, outputs], of every layer, by its path."""
    images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), images)['params']
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(shapes)
    return {path[:-1]: shape for path, shape in flat.items() if path[-1] == 'kernel'}


def _check(tensors, source):
    expected = tensor_shapes()
    missing = [name for name in expected if name not in tensors]
    if missing:
        more = f' and {len(missing) - 1} more' if len(missing) > 1 else ''
        raise InputError(
            f'{source} is not the Inception network of 2015, or not all of it: it has no '
            f'{missing[0]}{more}. It should be a state dict as pytorch-fid and torch-fidelity '
            f'publish it: {ADDRESSES[0]}'
        )
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape or not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise InputError(
                f'{name} of {source} is {tensor.dtype} of shape {tensor.shape}; it should be '
                f"floating point of shape {shape}. torchvision's Inception v3 is another network "
                'than that of FID.'
            )


def _folded(weight_OIHW, scale, bias, mean, variance) -> dict[str, np.ndarray]:
    gain = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + BATCH_NORM_EPSILON)
    return {'kernel': weight_OIHW.transpose(2, 3, 1, 0) * gain, 'bias': bias - mean * gain}
