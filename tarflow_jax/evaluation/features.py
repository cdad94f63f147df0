"""Features of images, by which sets of images are compared."""

import copy
import functools
from collections.abc import Iterable
from typing import Any

import jax

from tarflow_jax.evaluation import haar, inception_weights
from tarflow_jax.evaluation.inception import FEATURES, Inception
from tarflow_jax.evaluation.preprocessing import PREPROCESSING, preprocess
from tarflow_jax.parallel import arrays, rules

QUANTIZATIONS = ('truncate', 'round')


class Features:
    """Computes named features of images on the devices of a mesh.

    Args:
      names: some of `inception.FEATURES`, of the 2015 Inception network, and 'haar', which needs
        no weights (see `haar.features`).
      mesh: the devices, of all processes.
      preprocessing: how images are prepared for Inception, a key of `PREPROCESSINGS`.
      weights: the file of Inception's weights; '' to download it, see
        `inception_weights`.

    Attributes:
      names: those computed, sorted.
      settings: what changes the features, by name: the preprocessing and the SHA-256 of the file
        of weights, for features of Inception only.

    Raises:
      InputError: no such preprocessing, or no weights.
    """

    def __init__(
        self,
        names: Iterable[str],
        mesh,
        *,
        preprocessing: str = 'torch-fidelity',
        weights: str = '',
    ):
        self.names = tuple(sorted(names))
        self.settings: dict[str, Any] = {}
        self._params = None
        self._mesh = mesh
        self._preprocessing = PREPROCESSING.check('evaluate.preprocessing', preprocessing)
        if any(name in FEATURES for name in self.names):
            params, digest = inception_weights.load(weights)
            everywhere = jax.tree.map(lambda _: rules.replicated(mesh), params)
            self._params = arrays.put(params, everywhere)
            self.settings = {'preprocessing': preprocessing, 'inception_sha256': digest}

    def subset(self, names: Iterable[str]) -> 'Features':
        """Computes some of these features alone, with the same network."""
        other = copy.copy(self)
        other.names = tuple(sorted(names))
        return other

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Features float32 [B, D] by name, of images uint8 [B, H, W, C] over the mesh."""
        split = rules.batch_sharding(self._mesh)
        features = {}
        if self._params is not None:
            x = _preprocess(images, self._preprocessing)
            features |= _inception(self._params, x, split)
        if 'haar' in self.names:
            features['haar'] = _haar(images, split)
        return {name: features[name] for name in self.names}


# Compiled separately from the network, which is then compiled once for images of all sizes.
_preprocess = jax.jit(preprocess, static_argnums=1)


@functools.partial(jax.jit, static_argnums=1)
def _haar(images, split):
    return jax.lax.with_sharding_constraint(haar.features(images), split)


@functools.partial(jax.jit, static_argnums=2)
def _inception(params, x, split):
    return jax.lax.with_sharding_constraint(Inception().apply({'params': params}, x), split)


@functools.partial(jax.jit, static_argnums=1)
def to_levels(images, quantization: str):
    """Pixels in [-1, 1] as uint8, clipped: 'truncate'd, as the published code has it, or 'round'ed.

    Values that are not numbers become 0.
    """
    levels = (images.clip(-1, 1) + 1) * 127.5
    return (levels if quantization == 'truncate' else levels.round()).astype('uint8')


@functools.partial(jax.jit, static_argnums=1)
def to_8_bits(levels, num_levels: int):
    """Levels 0..num_levels - 1 as 0..255, to the nearest."""
    if num_levels == 256:
        return levels
    return (levels.astype('float32') * (255 / (num_levels - 1))).round().astype('uint8')
