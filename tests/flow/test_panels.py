"""Kernels in panels give the same products, and are chosen where they are faster."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from tarflow_jax import sample
from tarflow_jax.flow import TarFlow, panels
from tarflow_jax.flow.conditioner import Linear
from tarflow_jax.parallel.mesh import AXES, make_mesh

MODEL = TarFlow((8, 8, 1), 2, width=16, head_dim=8, num_blocks=2, layers_per_block=2, num_classes=7)


@pytest.fixture
def avx2(monkeypatch):
    monkeypatch.setattr(panels, '_has_avx2_only', lambda: True)


def layers_of(kernel_bytes, dtype=np.float32, columns=64):
    """Parameters of two layers with kernels of so many bytes."""
    kernel = np.zeros((kernel_bytes // (2 * columns * np.dtype(dtype).itemsize), columns), dtype)
    linear = {'kernel': kernel, 'bias': np.zeros(columns, dtype)}
    return ({'mlp': {'up': linear}, 'mlp_norm': {'scale': np.ones(64, np.float32)}},) * 2


LARGE = layers_of(2**23)


@pytest.mark.parametrize('features', [(48,), (2, 3, 16)])
@pytest.mark.parametrize('inputs', [(24,), (3, 8)])
def test_a_linear_map_is_the_same(inputs, features):
    linear = Linear(features)
    x = np.random.default_rng(0).normal(size=(5, *inputs)).astype(np.float32)
    params = linear.init(jax.random.key(0), x)['params']
    params = {**params, 'bias': jnp.arange(np.prod(features), dtype=float).reshape(features)}
    answer = linear.apply({'params': panels.in_panels(params)}, x)
    np.testing.assert_allclose(answer, linear.apply({'params': params}, x), atol=1e-5)


@pytest.mark.parametrize('guidance', [0, 1.5])
def test_samples_are_the_same(avx2, monkeypatch, random_params, random_batch, guidance):
    params = random_params(MODEL)
    noise, labels = random_batch(MODEL)
    without = MODEL.clone(remat='full')  # samples the same, compiled separately
    expected = sample(without, params, noise, labels, guidance=guidance)
    rows_of_products = set()
    multiply = panels.multiply
    monkeypatch.setattr(panels, 'MIN_BYTES', 0)
    monkeypatch.setattr(
        panels, 'multiply', lambda *x: rows_of_products.add(len(x[0])) or multiply(*x)
    )
    samples = sample(MODEL, params, noise, labels, guidance=guidance)
    assert rows_of_products == {8 if guidance else 4}
    np.testing.assert_allclose(samples, expected, atol=1e-5)


def test_few_rows_of_large_kernels_pay_off(avx2):
    assert panels.pay_off(LARGE, 2)
    assert panels.pay_off(LARGE, panels.MAX_ROWS)


@pytest.mark.parametrize(
    ('layers', 'num_rows'),
    [
        (LARGE, 1),
        (LARGE, panels.MAX_ROWS + 1),
        (layers_of(2**21), 8),
        (layers_of(2**23, jnp.bfloat16), 8),
        (layers_of(2**23, columns=72), 8),
    ],
    ids=['one row', 'many rows', 'small kernels', 'bfloat16', '72 columns'],
)
def test_others_do_not(avx2, layers, num_rows):
    assert not panels.pay_off(layers, num_rows)


@pytest.mark.parametrize(
    ('platform', 'sizes', 'num_rows', 'is_faster'),
    [
        ('cpu', (2, 1, 1), 2, True),
        ('cpu', (2, 1, 1), 2 * panels.MAX_ROWS, True),
        ('cpu', (1, 2, 1), 2 * panels.MAX_ROWS, True),
        ('cpu', (2, 1, 1), 2 * panels.MAX_ROWS + 2, False),
        ('cpu', (1, 1, 2), 8, False),
        ('gpu', (2, 1, 1), 8, False),
    ],
)
def test_rows_are_those_of_a_device(avx2, platform, sizes, num_rows, is_faster):
    make_device = type(make_mesh(1, devices=jax.devices()[:1]).abstract_mesh.abstract_device)
    device = make_device(device_kind=platform, num_cores=1, platform=platform)
    mesh = AbstractMesh(sizes, AXES, (AxisType.Auto,) * 3, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert panels.pay_off(LARGE, num_rows) is is_faster


def test_other_instructions_do_not(monkeypatch):
    monkeypatch.setattr(panels, '_has_avx2_only', lambda: False)
    assert not panels.pay_off(LARGE, 8)
