"""The bijection: one block, the chain of blocks over tokens, and the patches around it."""

from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.flow.tokens import TokenFlow

__all__ = ['TarFlow', 'TokenFlow']
