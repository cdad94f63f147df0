"""Norms of the transformer layers, and the same ones as part of the products after them."""

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.flow import TarFlow
from tarflow_jax.flow.conditioner import NORM_EPSILON, fold_norms, normalize

MODEL = TarFlow((4, 4, 1), 2, width=16, num_blocks=2, layers_per_block=2, head_dim=8)
X = np.random.default_rng(0).normal(1.0, 3.0, (5, 7, 16))
COTANGENT = np.random.default_rng(1).normal(size=X.shape)


def in_float64(x):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + NORM_EPSILON)


def test_rows_have_mean_0_and_variance_1():
    np.testing.assert_allclose(normalize(X.astype(np.float32)), in_float64(X), atol=1e-6)


def test_the_derivative():
    """Against central differences in float64, along every feature of a row."""
    _, pull_back = jax.vjp(normalize, X.astype(np.float32))
    (gradient,) = pull_back(COTANGENT.astype(np.float32))
    for feature in range(X.shape[-1]):
        step = np.eye(X.shape[-1])[feature] * 1e-5
        change = (in_float64(X + step) - in_float64(X - step)) / 2e-5
        expected = (COTANGENT * change).sum(-1)
        np.testing.assert_allclose(gradient[..., feature], expected, atol=1e-6)


def test_folded_into_products_they_give_the_same_latents(random_params):
    params = random_params(MODEL)
    layers = params['blocks']['layers']
    assert np.ptp(layers['mlp_norm']['scale']) > 0
    folded = fold_norms(layers)
    assert sorted(folded) == ['attention', 'mlp']
    images = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4, 4, 1)), jnp.float32)
    latents, log_det = MODEL.apply({'params': params}, images)
    blocks = {**params['blocks'], 'layers': folded}
    same, same_log_det = MODEL.apply({'params': {**params, 'blocks': blocks}}, images)
    np.testing.assert_allclose(same, latents, atol=2e-6)
    np.testing.assert_allclose(same_log_det, log_det, atol=1e-5)
    assert np.abs(latents - images).max() > 0.1
