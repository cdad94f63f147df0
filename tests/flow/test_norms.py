"""Norms of the transformer layers as part of the products after them."""

import jax.numpy as jnp
import numpy as np

from tarflow_jax.flow import TarFlow
from tarflow_jax.flow.conditioner import fold_norms

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
