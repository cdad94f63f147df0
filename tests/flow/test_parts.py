"""A batch in parts gives what the whole batch gives."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from tarflow_jax.flow import TarFlow, parts
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.mesh import AXES, make_mesh

MODEL = TarFlow((4, 4, 1), 2, width=8, head_dim=4, num_blocks=2, layers_per_block=1)
ROW_BYTES = 4 * 4 * 32  # hidden features of an image: tokens, features, bytes


def cpus(number):
    return make_mesh(devices=jax.devices()[:number]).abstract_mesh


@pytest.mark.parametrize(
    ('num_images', 'devices', 'expected'),
    [(8, 1, 1), (16, 1, 2), (24, 1, 3), (26, 1, 13), (16, 2, 1), (32, 2, 2), (17, 1, 17)],
)
def test_a_part_of_a_device_fits_the_cache(num_images, devices, expected, monkeypatch):
    monkeypatch.setattr(parts, 'CACHE_BYTES', 8 * ROW_BYTES)
    assert parts.count_parts(MODEL, num_images, cpus(devices)) == expected


def test_accelerators_take_a_batch_whole_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(parts, 'CACHE_BYTES', 1)
    make_device = type(cpus(1).abstract_device)
    device = make_device(device_kind='TPU v5 lite', num_cores=1, platform='tpu')
    mesh = AbstractMesh((2, 1, 1), AXES, (AxisType.Auto,) * 3, abstract_device=device)
    assert parts.count_parts(MODEL, 64, mesh) == 1
    assert parts.count_parts(MODEL, 64, mesh, accelerator_bytes=8 * ROW_BYTES) == 4
    assert parts.unroll_for_gradients(MODEL, mesh) == MODEL


def test_only_few_layers_are_written_out():
    assert parts.unroll_for_gradients(MODEL, cpus(1)).unroll == 'all'
    deep = MODEL.clone(layers_per_block=parts.MAX_UNROLLED)
    assert parts.unroll_for_gradients(deep, cpus(1)) == deep


@pytest.mark.parametrize('devices', [None, 1, 4])
def test_parts_give_what_the_whole_batch_gives(devices, monkeypatch, random_params, random_batch):
    params, (images, _) = random_params(MODEL), random_batch(MODEL, batch=24)
    log_prob = functools.partial(MODEL.apply, {'params': params}, method='log_prob')
    expected = jax.jit(log_prob)(images)
    monkeypatch.setattr(parts, 'CACHE_BYTES', 2 * ROW_BYTES)

    @jax.jit
    def in_parts(images):
        return parts.map_parts(log_prob, MODEL, images)

    if devices is None:
        assert '[12,2,4,4,1]' in in_parts.lower(images).as_text('hlo')
        actual = in_parts(images)
        assert '[12,2,4,4,1]' in in_parts.lower(images[:23]).as_text('hlo')  # filled up
        np.testing.assert_allclose(in_parts(images[:23]), expected[:23], rtol=1e-5)
    else:
        mesh = make_mesh(devices=jax.devices()[:devices])
        images = jax.device_put(images, rules.batch_sharding(mesh))
        with rules.activation_sharding(mesh):
            actual = in_parts(images)
            if devices == 1:
                assert '[12,2,4,4,1]' in in_parts.lower(images[:23]).as_text('hlo')
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
