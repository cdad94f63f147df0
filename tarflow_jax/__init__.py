"""TarFlow in JAX: train, sample and score images with a transformer normalizing flow.

    import tarflow_jax
    model, params = tarflow_jax.load('runs/digits')
    latents, log_det = model.apply({'params': params}, images, labels)
    images = tarflow_jax.sample(model, params, noise, labels, guidance=1.5)
    images = tarflow_jax.denoise(model, params, images, labels, noise_std=0.1)

Images are float32 [B, H, W, C] in [-1, 1]; noise and latents have the images' shape; labels are
int32 [B], -1 for none, or None. Lists and arrays of other libraries will do, and other floats, but
no 8-bit images, which would have to be scaled first (images / 127.5 - 1).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tarflow_jax.errors import InputError
    from tarflow_jax.flow import TarFlow
    from tarflow_jax.likelihood.classify import class_log_probs
    from tarflow_jax.loading import load
    from tarflow_jax.sampling import denoise, sample

__version__ = '0.1.0'

__all__ = ['InputError', 'TarFlow', 'class_log_probs', 'denoise', 'load', 'sample']

# Imported at first use: processes that only read images need no JAX.
_HOMES = {
    'InputError': 'tarflow_jax.errors',
    'TarFlow': 'tarflow_jax.flow',
    'class_log_probs': 'tarflow_jax.likelihood.classify',
    'denoise': 'tarflow_jax.sampling',
    'load': 'tarflow_jax.loading',
    'sample': 'tarflow_jax.sampling',
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
