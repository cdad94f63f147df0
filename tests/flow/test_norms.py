"""Layer norms: their gradients, what these keep, and norms as part of the products after them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax.flow import TarFlow
from tarflow_jax.flow.norms import EPSILON, LayerNorm, fold_norms, normalize

MODEL = TarFlow((4, 4, 1), 2, width=16, num_blocks=2, layers_per_block=2, head_dim=8)


def test_folded_into_products_they_give_the_same_latents(random_params):
    params = random_params(MODEL)
    layers = params['blocks']['layers']
    folded = fold_norms(layers)
    assert sorted(folded) == ['attention', 'mlp']
    images = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4, 4, 1)), jnp.float32)
    latents, log_det = MODEL.apply({'params': params}, images)
    blocks = {**params['blocks'], 'layers': folded}
    same, same_log_det = MODEL.apply({'params': {**params, 'blocks': blocks}}, images)
    np.testing.assert_allclose(same, latents, atol=2e-6)
    np.testing.assert_allclose(same_log_det, log_det, atol=1e-5)
    assert np.abs(latents - images).max() > 0.1


def test_derivatives_are_those_of_the_formula():
    def standardized(x):
        centered = x - x.mean(axis=-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + EPSILON)

    x, change = np.random.default_rng(0).normal(3.0, 2.0, size=(2, 5, 16))
    step = 1e-5
    slope = (standardized(x + step * change) - standardized(x - step * change)) / (2 * step)
    y, dy = jax.jvp(lambda x: normalize(x, jnp.float32), (x,), (change,))
    np.testing.assert_allclose(y, standardized(x), atol=1e-6)
    np.testing.assert_allclose(dy, slope, atol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_keep_the_result_and_a_number_for_each_row(dtype):
    x = jnp.ones((6, 16))
    pull = jax.vjp(LayerNorm(jnp.dtype(dtype)).apply, {}, x)[1]
    kept = sorted((str(array.dtype), array.shape) for array in jax.tree.leaves(pull))
    assert kept == sorted([(dtype, (6, 16)), ('float32', (6, 1))])
