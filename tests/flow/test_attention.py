"""Attention kernels of devices compute the same as plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from tarflow_jax.flow import TarFlow, attention
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.libtpu import quiet_without_tpu
from tarflow_jax.parallel.mesh import make_mesh

SHAPE = (4, 256, 4, 64)


@pytest.fixture(scope='module')
def qkv():
    draws = np.random.default_rng(0)
    return [jnp.asarray(draws.normal(size=SHAPE), jnp.float32) for _ in range(3)]


def output_and_gradients(attend, qkv, **arguments):
    def weighted_sum(*qkv):
        out = attend(*qkv, **arguments)
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(weighted_sum, (0, 1, 2), has_aux=True))(*qkv)
    return out, *grads


def assert_close(results, expected):
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=0, atol=2e-5 * np.abs(reference).max())


@pytest.fixture(scope='module')
def plain(qkv):
    return output_and_gradients(attention.xla, qkv)


def test_plain_attention_is_the_formula(qkv, plain):
    q, k, v = (np.asarray(x, np.float64).swapaxes(1, 2) for x in qkv)
    weights = np.exp(q @ k.swapaxes(2, 3) / 8) * np.tri(SHAPE[1])
    weights /= weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(plain[0], (weights @ v).swapaxes(1, 2), atol=1e-5)


@pytest.mark.parametrize('room', [0, 50])
def test_the_last_queries_of_a_cache(room, qkv, plain):
    q, k, v = (x.swapaxes(1, 2) for x in qkv)
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0))) for x in (k, v))
    first = 40
    position = jnp.arange(first, SHAPE[1])
    mixed = jax.jit(attention.attend)(q[:, :, first:].swapaxes(1, 2), k, v, position, 1.0)
    np.testing.assert_allclose(mixed, plain[0][:, first:], atol=1e-5)


def test_dot_product_attention(qkv, plain):
    """The call that cuDNN serves on a GPU, served by XLA."""
    assert_close(output_and_gradients(attention.cudnn, qkv, implementation='xla'), plain)


def test_splash(qkv, plain):
    assert_close(output_and_gradients(attention.splash, qkv, interpret=True), plain)


def test_splash_on_a_mesh(qkv, plain):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with rules.activation_sharding(mesh):
        qkv = [jax.device_put(x, rules.batch_sharding(mesh)) for x in qkv]
        results = output_and_gradients(attention.splash, qkv, interpret=True)
    assert_close(results, plain)


def kernels_for_a_tpu(transform=jax.grad, **change):
    """Kernel calls in a flow's gradient, compiled for two by two TPUs, and the program's text."""
    model = TarFlow(
        (32, 80, 3), 2, width=128, num_blocks=2, layers_per_block=2, dtype='bfloat16', **change
    )
    with quiet_without_tpu():
        devices = topologies.get_topology_desc('v5e:2x2', platform='tpu').devices
    mesh = make_mesh(data=1, fsdp=2, tensor=2, devices=devices)

    def loss(params, images):
        latents, log_det = model.apply({'params': params}, images)
        return (latents**2).sum() - log_det.sum()

    shapes = model.param_shapes()
    images = jax.ShapeDtypeStruct((4, *model.image_shape), jnp.float32)
    in_shardings = (rules.shardings(shapes, mesh), rules.batch_sharding(mesh))
    with rules.activation_sharding(mesh):
        program = jax.jit(transform(loss), in_shardings=in_shardings)
        text = program.lower(shapes, images).compile().as_text()
    return text.count('custom_call_target="tpu_custom_call"'), text


@pytest.mark.parametrize(('remat', 'num_kernels'), [('dots', 3), ('full', 4)])
def test_splash_compiles_for_a_tpu(remat, num_kernels):
    """Forward, and two backward; run a second time only where nothing is kept."""
    kernels, text = kernels_for_a_tpu(attention='splash', remat=remat)
    assert kernels == num_kernels
    assert ',640,640]' not in text  # T x T weights


def test_plain_attention_for_a_tpu():
    """What the test above would see without a kernel, in the forward pass already."""
    kernels, text = kernels_for_a_tpu(lambda loss: loss, attention='xla')
    assert kernels == 0
    assert ',160,640]' in text  # queries attend in parts
