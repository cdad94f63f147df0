"""TarFlow in JAX: train, sample and score images with a transformer normalizing flow.

    import tarflow_jax

    flow = tarflow_jax.load('runs/digits')
    images = flow.sample(0, 10, guidance=1.0, denoise=True)
    bits = flow.bits_per_dim(levels, num_levels=17)

The object accepts images, labels and seeds in many forms, see `TrainedFlow`. Each of its methods is
also available as a function of the model and its parameters, which accepts one form only: images
are float32 [B, H, W, C] in [-1, 1]; noise and latents have the images' shape; labels are int32 [B],
-1 for none, or None; keys are those of `jax.random.key`.

    model, params = flow
    images = tarflow_jax.sample(model, params, noise, labels, guidance=1.0)
    latents, log_det = tarflow_jax.forward(model, params, images, labels)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tarflow_jax.errors import InputError
    from tarflow_jax.flow import TarFlow
    from tarflow_jax.likelihood.classify import class_log_probs
    from tarflow_jax.likelihood.densities import bits_per_dim, log_prob
    from tarflow_jax.likelihood.noise import Noise
    from tarflow_jax.loading import from_pretrained, load
    from tarflow_jax.sampling import denoise, sample
    from tarflow_jax.sampling.inpaint import inpaint
    from tarflow_jax.sampling.paths import forward, interpolate, inverse, journey, reconstruct
    from tarflow_jax.trained_flow import TrainedFlow

__version__ = '0.1.0'

__all__ = [
    'InputError',
    'Noise',
    'TarFlow',
    'TrainedFlow',
    'bits_per_dim',
    'class_log_probs',
    'denoise',
    'forward',
    'from_pretrained',
    'inpaint',
    'interpolate',
    'inverse',
    'journey',
    'load',
    'log_prob',
    'reconstruct',
    'sample',
]

# Imported at first use: processes that only read images need no JAX.
_MODULES = {
    'InputError': 'tarflow_jax.errors',
    'Noise': 'tarflow_jax.likelihood.noise',
    'TarFlow': 'tarflow_jax.flow',
    'TrainedFlow': 'tarflow_jax.trained_flow',
    'bits_per_dim': 'tarflow_jax.likelihood.densities',
    'class_log_probs': 'tarflow_jax.likelihood.classify',
    'denoise': 'tarflow_jax.sampling',
    'forward': 'tarflow_jax.sampling.paths',
    'from_pretrained': 'tarflow_jax.loading',
    'inpaint': 'tarflow_jax.sampling.inpaint',
    'interpolate': 'tarflow_jax.sampling.paths',
    'inverse': 'tarflow_jax.sampling.paths',
    'journey': 'tarflow_jax.sampling.paths',
    'load': 'tarflow_jax.loading',
    'log_prob': 'tarflow_jax.likelihood.densities',
    'reconstruct': 'tarflow_jax.sampling.paths',
    'sample': 'tarflow_jax.sampling',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
