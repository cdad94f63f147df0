"""Counting what compiled modules do, on modules whose loops and collectives are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tarflow_jax.planning import collectives, costs, hlo, network
from tarflow_jax.planning.chips import CHIPS
from tarflow_jax.planning.topologies import Topology


def compiled(function, *arguments):
    return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def flops(module):
    return costs.count(module, lambda *_: 0.0).flops


def test_loops_multiply_what_stands_in_them():
    def nested(x):
        def outer(x, _):
            return jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, None, length=5)

        return jax.lax.scan(lambda x, _: (outer(x, None)[0], None), x, None, length=7)[0]

    module = compiled(nested, jnp.ones((16, 16)))
    assert flops(module) == 7 * 5 * 2 * 16**3
    assert module.loops_of_unknown_length == []


def test_trips_are_counted_from_the_condition():
    module = hlo.parse(LOOP)
    loop = module.entry.instructions['loop']
    assert module.trip_count(module.entry, loop) == 4  # 2, 5, 8, 11


LOOP = """HloModule loop

%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %three = s32[] constant(3)
  %next = s32[] add(%i, %three)
  %x = f32[8,8]{1,0} get-tuple-element(%p), index=1
  ROOT %t = (s32[], f32[8,8]{1,0}) tuple(%next, %x)
}

%condition (q: (s32[], f32[8,8])) -> pred[] {
  %q = (s32[], f32[8,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %bound = s32[] constant(12)
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}

ENTRY %main (a: f32[8,8]) -> (s32[], f32[8,8]) {
  %a = f32[8,8]{1,0} parameter(0)
  %two = s32[] constant(2)
  %start = (s32[], f32[8,8]{1,0}) tuple(%two, %a)
  ROOT %loop = (s32[], f32[8,8]{1,0}) while(%start), condition=%condition, body=%body
}
"""


def test_a_loop_without_a_count_is_told():
    module = compiled(
        lambda x: jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ x, x), jnp.ones((8, 8))
    )
    assert flops(module) == 2 * 8**3
    assert len(module.loops_of_unknown_length) == 1


@pytest.mark.parametrize(
    ('window', 'out', 'expected'),
    [(1, 9, 9), (3, 7, 21), (3, 9, 25)],
)
def test_convolutions_count_no_padding(window, out, expected):
    pad = (out + window - 1 - 9) // 2
    module = compiled(
        lambda x, k: jax.lax.conv(x, k, (1,), [(pad, pad)]),
        jnp.ones((2, 3, 9)),
        jnp.ones((5, 3, window)),
    )
    assert flops(module) == 2 * 2 * 3 * 5 * expected


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)


def test_collectives_of_a_loop(mesh):
    def gather(kernels, x):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        return jax.lax.scan(layer, x, kernels)[0]

    kernels = jax.ShapeDtypeStruct(
        (6, 32, 32), np.float32, sharding=NamedSharding(mesh, P(None, 'fsdp'))
    )
    x = jax.ShapeDtypeStruct((64, 32), np.float32, sharding=NamedSharding(mesh, P('data')))
    found = collectives.find(compiled(gather, kernels, x))
    gathered = [c for c in found if c.kind == 'all-gather']
    moved = sum(c.times * c.num_bytes for c in found)
    if gathered:
        assert {len(c.group) for c in gathered} == {2}
    assert moved in (6 * 4 * 32 * 32, 6 * 4 * 16 * 32)  # of kernels, or of partial sums
    assert all(network.route(c, mesh, TOPOLOGY).axes == ('fsdp',) for c in found)


def test_a_sum_over_an_axis(mesh):
    def mean(x):
        return x.sum(axis=0)

    x = jax.ShapeDtypeStruct((64, 128), np.float32, sharding=NamedSharding(mesh, P('data')))
    (found,) = collectives.find(compiled(mean, x))
    assert (found.kind, found.num_bytes, found.times) == ('all-reduce', 4 * 128, 1)
    way = network.route(found, mesh, TOPOLOGY)
    assert (way.axes, way.devices, way.slices) == (('data',), 4, 1)
    chip = TOPOLOGY.chip
    assert way.ici_seconds == pytest.approx(2 * 4 * 128 * 3 / 4 / chip.link_bandwidth)


TOPOLOGY = Topology('v5e:2x4', CHIPS['v5e'], jax.devices(), (2, 4))


@pytest.mark.parametrize(
    ('text', 'group'),
    [
        ('replica_groups={{0,2},{1,3}}', (0, 2)),
        ('replica_groups=[2,4]<=[8]', (0, 1, 2, 3)),
        ('replica_groups=[2,4]<=[4,2]T(1,0)', (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", (0, 1)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}, use_global_device_ids=true", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 2, 4, 6)),
    ],
)
def test_groups_of_devices(text, group):
    assert collectives.first_group(f', channel_id=1, {text}, to_apply=%add') == group


SEND = """HloModule m

ENTRY %main (x: f32[1,4,128]) -> (f32[1,4,128], u32[], token[]) {
  %x = f32[1,4,128]{2,1,0:T(4,128)} parameter(0)
  %after = token[] after-all()
  ROOT %send = (f32[1,4,128]{2,1,0:T(4,128)}, u32[], token[]) send(%x, %after), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""


def test_a_sum_between_slices(mesh):
    (found,) = collectives.find(hlo.parse(SEND))
    assert (found.kind, found.num_bytes, found.between_slices) == ('all-reduce', 2048, True)
    chip = CHIPS['v5e']
    way = network.route(found, mesh, Topology('2xv5e:2x2', chip, jax.devices(), (2, 2), 2))
    assert (way.axes, way.devices, way.slices, way.ici_seconds) == (('data',), 2, 2, 0.0)
    assert way.dcn_seconds == pytest.approx(2048 / chip.dcn_bandwidth)


def test_bytes_of_a_layout():
    instruction = hlo.parse(TILED).entry.instructions['x']
    (shape,) = instruction.shapes
    assert shape.num_bytes == 2 * 4 * 100 * 64
    assert shape.stored_bytes == 2 * 4 * 104 * 128  # whole tiles of 8x128
    assert shape.space == 1


TILED = """HloModule m

ENTRY %main (x: bf16[4,100,64]) -> bf16[4,100,64] {
  ROOT %x = bf16[4,100,64]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
}
"""
