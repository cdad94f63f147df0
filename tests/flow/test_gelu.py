"""The GELU of the MLPs and its derivative, against SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from tarflow_jax.flow.conditioner import gelu

X = np.linspace(-12, 12, 4801)


def test_it_is_x_times_the_distribution_function_of_a_normal():
    np.testing.assert_allclose(gelu(X.astype(np.float32)), X * norm.cdf(X), rtol=1e-6, atol=2e-6)


def test_its_derivative():
    derivative = jax.vmap(jax.grad(gelu))(X.astype(np.float32))
    np.testing.assert_allclose(derivative, norm.cdf(X) + X * norm.pdf(X), atol=1e-6)


def test_its_type_is_that_of_its_argument():
    assert gelu(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
