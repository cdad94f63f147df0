"""The inverse of the flow, and what makes samples better."""

from tarflow_jax.sampling.denoise import denoise
from tarflow_jax.sampling.sequential import sample

__all__ = ['denoise', 'sample']
