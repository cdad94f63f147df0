"""The inverse of the flow, its guidance, and the removal of noise from samples."""

from tarflow_jax.sampling.denoise import denoise
from tarflow_jax.sampling.sample import sample

__all__ = ['denoise', 'sample']
