"""The bijection: patches, the causal transformer, one block, the chain."""

from tarflow_jax.flow.tarflow import TarFlow

__all__ = ['TarFlow']
