"""In bfloat16, every product within a layer multiplies bfloat16, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax.flow import TarFlow
from tarflow_jax.training.objective import negative_log_likelihood

# No two of its sizes are equal, so a shape tells what an array is.
MODEL = TarFlow(
    (2, 16, 3),
    2,
    width=20,
    head_dim=10,
    num_blocks=2,
    layers_per_block=2,
    num_classes=7,
    dtype='bfloat16',
)
TOKEN_DIM, OUTPUTS, HIDDEN = 12, 24, 80
ROWS = 5 * 8  # images times tokens


def equations(jaxpr):
    """All equations, those of loops and calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from equations(inner)


@pytest.fixture(scope='module')
def gradient():
    images, labels = np.zeros((5, *MODEL.image_shape), np.float32), np.zeros(5, np.int32)

    def loss(params):
        return negative_log_likelihood(MODEL, params, images, labels)[0].mean()

    params = MODEL.param_shapes()
    return list(equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))


def test_only_the_maps_of_tokens_and_classes_multiply_float32(gradient):
    products = [eqn for eqn in gradient if eqn.primitive.name == 'dot_general']
    assert len(products) > 20
    for product in products:
        factors = [factor.aval for factor in product.invars]
        sizes = {size for factor in factors for size in factor.shape}
        is_outside = sizes & {TOKEN_DIM, OUTPUTS, MODEL.num_classes}
        expected = jnp.float32 if is_outside else jnp.bfloat16
        assert [factor.dtype for factor in factors] == [expected] * 2, product


def test_no_hidden_features_are_promoted(gradient):
    """Gradients of parameters are cast to float32; of activations [R, F], none."""
    arrays = [out.aval for eqn in gradient for out in eqn.outvars if hasattr(out.aval, 'shape')]
    hidden = [array for array in arrays if array.shape == (ROWS, HIDDEN)]
    assert len(hidden) > 3
    assert {array.dtype for array in hidden} == {jnp.dtype(jnp.bfloat16)}
