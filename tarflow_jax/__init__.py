"""TarFlow in JAX: train, sample and score images with a transformer normalizing flow.

    import tarflow_jax
    model, params = tarflow_jax.load('runs/digits')
    latents, log_det = model.apply({'params': params}, images, labels)
    images = tarflow_jax.sample(model, params, noise, labels, guidance=1.5)
    images = tarflow_jax.denoise(model, params, images, labels, noise_std=0.1)

Images are float32 [B, H, W, C] in [-1, 1]; noise and latents have the images' shape; labels are
int32 [B], -1 for none, or None.
"""

from tarflow_jax.errors import InputError
from tarflow_jax.evaluation.classify import class_log_probs
from tarflow_jax.flow import TarFlow
from tarflow_jax.loading import load
from tarflow_jax.sampling import denoise, sample

__version__ = '0.1.0'

__all__ = ['InputError', 'TarFlow', 'class_log_probs', 'denoise', 'load', 'sample']
