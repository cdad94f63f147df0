"""What compiled modules do, on modules whose loops, products and messages are known."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tarflow_jax.planning import collectives, costs, hlo
from tarflow_jax.planning.chips import CHIPS
from tarflow_jax.planning.compilation import Program, compile_program
from tarflow_jax.planning.estimate import estimate
from tarflow_jax.planning.gpus import GPUS
from tarflow_jax.planning.topologies import Topology


def compiled(function, *arguments):
    return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def total(cost, entry):
    return sum(times * cost(instruction) for instruction, times in hlo.executed(entry))


def flops(entry):
    return total(lambda instruction: costs.flops(instruction)[0], entry)


def test_loops_multiply_what_stands_in_them():
    def nested(x):
        def outer(x, _):
            return jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, None, length=5)

        return jax.lax.scan(lambda x, _: (outer(x, None)[0], None), x, None, length=7)[0]

    assert flops(compiled(nested, jnp.ones((16, 16)))) == 7 * 5 * 2 * 16**3


def module(body: str) -> str:
    return f'HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {{\n{body}\n}}\n'


def test_trips_are_counted_from_the_condition():
    loop = hlo.parse(LOOP).root
    assert hlo.trip_count(loop) == 12
    assert [i.name for i, times in hlo.executed(hlo.parse(LOOP)) if times == 12] == [
        'p', 'i', 'one', 'next', 'x', 't',
    ]  # fmt: skip


# As a TPU's compiler writes it: without a note of the trips.
LOOP = """HloModule loop

%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
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
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,8]{1,0}) tuple(%zero, %a)
  ROOT %loop = (s32[], f32[8,8]{1,0}) while(%start), condition=%condition, body=%body
}
"""


def test_a_loop_of_unknown_length_counts_once():
    entry = compiled(
        lambda x: jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ x, x), jnp.ones((8, 8))
    )
    assert flops(entry) == 2 * 8**3


@pytest.mark.parametrize(
    ('left', 'right', 'out', 'attributes', 'expected'),
    [
        ('4096,768', '768,3072', '4096,3072', 'dim_labels=bf_io->bf', 4096 * 768 * 3072),
        (  # a contracted axis along the window
            *('4,1024,3072', '4,1024,768', '3072,768,1'),
            'window={size=4}, dim_labels=0fb_0io->bf0',
            4 * 1024 * 3072 * 768,
        ),
        (  # columns along the window
            *('4,1024,768,1', '12,64,768,1', '4,1024,12,64'),
            'window={size=1x12 pad=0_0x11_11 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f',
            4 * 1024 * 768 * 12 * 64,
        ),
    ],
)
def test_products_that_a_tpu_writes_as_convolutions(left, right, out, attributes, expected):
    left, right, out = (f'f32[{dims}]' for dims in (left, right, out))
    lines = f'  %x = {left} parameter(0)\n  %k = {right} parameter(1)\n'
    product = f'  ROOT %y = {out} convolution(%x, %k), {attributes}, operand_precision={{highest}}'
    entry = hlo.parse(module(lines + product))
    assert costs.flops(entry.root) == (2 * expected, 6 * 2 * expected)  # float32: six passes


CUBLAS = """  %x = {dtype}[64,32]{{1,0}} parameter(0)
  %k = {dtype}[32,48]{{1,0}} parameter(1)
  ROOT %y = ({dtype}[64,48]{{1,0}}, s8[33554432]{{0}}) custom-call(%x, %k), \
custom_call_target="__cublas$lt$matmul", backend_config={{"gemm_backend_config":{{"beta":0,\
"dot_dimension_numbers":{{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],\
"lhs_batch_dimensions":[]}},"precision_config":{{"operand_precision":["HIGHEST","HIGHEST"]}}}}}}"""
CUDNN = """  %q = bf16[2,256,3,64]{{3,2,1,0}} parameter(0)
  %k = bf16[2,256,3,64]{{3,2,1,0}} parameter(1)
  %v = bf16[2,256,3,64]{{3,2,1,0}} parameter(2)
  ROOT %{name}.7 = (bf16[2,3,256,64]{{3,1,2,0}}, f32[2,3,256]{{2,1,0}}, u8[0]{{0}}) \
custom-call(%q, %k, %v), custom_call_target="__cudnn$fmhaSoftmax", api_version=API_VERSION_TYPED"""


@pytest.mark.parametrize(('dtype', 'passes'), [('bf16', 1), ('f32', 989 / 66.9)])
def test_products_that_a_gpu_has_in_a_library(dtype, passes):
    product = hlo.parse(module(CUBLAS.format(dtype=dtype))).root
    multiplied = 2 * 64 * 32 * 48
    counted = costs.flops(product, GPUS['h100'].chip().float32_passes)
    assert counted == (multiplied, pytest.approx(passes * multiplied))
    size = {'bf16': 2, 'f32': 4}[dtype]
    assert costs.hbm_bytes(product) == size * (64 * 32 + 32 * 48 + 64 * 48)  # not its workspace


@pytest.mark.parametrize(
    ('name', 'products'), [('dot_product_attention_fwd', 2), ('dot_product_attention_bwd', 5)]
)
def test_attention_that_a_gpu_has_in_a_library(name, products):
    kernel = hlo.parse(module(CUDNN.format(name=name))).root
    pairs = 3 / 4 * 256**2  # of two tiles a side, one has later tokens only
    assert costs.flops(kernel) == (products * 2 * 2 * 3 * pairs * 64,) * 2


def test_a_kernel_takes_some_time_however_little_it_does():
    entry = hlo.parse(module('  %x = f32[8]{0} parameter(0)\n  ROOT %y = f32[8]{0} negate(%x)'))
    gpu = GPUS['h100'].chip()
    run = estimate(Program(True, 0.0, entry=entry), None, Topology('h100', gpu, [], (1,)))
    assert run.compiled_seconds == gpu.kernel_seconds > 0


def test_a_scan_reads_a_slice_of_its_parameters():
    def layers(kernels, x):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    moved = [
        total(costs.hbm_bytes, compiled(layers, jnp.ones((length, 64, 64)), jnp.ones((64, 64))))
        for length in (8, 16, 32)
    ]
    assert moved[2] - moved[1] == pytest.approx(2 * (moved[1] - moved[0]), rel=0.01)
    assert moved[2] < 32 * 64 * 64 * 4 * 12  # in proportion to the layers, not to their square


UPDATE = """  %x = f32[64,128]{1,0:T(8,128)} parameter(0)
  %row = f32[8,128]{1,0:T(8,128)} parameter(1)
  %i = s32[] parameter(2)
  ROOT %y = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%x, %row, %i, %i)"""


def test_an_update_in_place_moves_what_it_changes():
    assert costs.hbm_bytes(hlo.parse(module(UPDATE)).root) == pytest.approx(2 * 4 * 8 * 128, abs=16)


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
    rows = collectives.summary(compiled(gather, kernels, x), mesh, TOPOLOGY)
    moved = sum(row['bytes'] for row in rows)
    assert moved in (6 * 4 * 32 * 32, 6 * 4 * 16 * 32)  # of kernels, or of partial sums
    assert {(row['types'], row['axes'], row['devices']) for row in rows} == {
        (('f32',), ('fsdp',), 2)
    }


def test_a_sum_over_an_axis(mesh):
    def mean(x):
        return x.sum(axis=0)

    x = jax.ShapeDtypeStruct((64, 128), np.float32, sharding=NamedSharding(mesh, P('data')))
    (row,) = collectives.summary(compiled(mean, x), mesh, TOPOLOGY)
    assert (row['kind'], row['bytes'], row['count']) == ('all-reduce', 4 * 128, 1)
    assert (row['network'], row['axes'], row['devices']) == ('interconnect', ('data',), 4)
    half_a_link = TOPOLOGY.chip.link_bandwidth / 2  # the other half is the other group's
    assert row['seconds'] == pytest.approx(2 * 4 * 128 * 3 / 4 / half_a_link)


TOPOLOGY = Topology('v5e:8x1', CHIPS['v5e'], jax.devices(), (8, 1))


@pytest.mark.parametrize(
    ('text', 'group'),
    [
        ('replica_groups={{0,2},{1,3}}', (0, 2)),
        ('replica_groups=[2,4]<=[8]', (0, 1, 2, 3)),
        ('replica_groups=[2,4]<=[4,2]T(1,0)', (0, 2, 4, 6)),
        ('source_target_pairs={{0,0},{4,1},{1,4}}', (4, 1)),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", (0, 1)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}, use_global_device_ids=true", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 2, 4, 6)),
    ],
)
def test_groups_of_devices(text, group):
    assert collectives.device_group(f', channel_id=1, {text}, to_apply=%add') == group


# As TPUs' compilers write a reduce-scatter: a sum of which a fusion keeps a slice, or a computation
# for another of the chip's cores.
SCATTERED = {
    'fused': """HloModule m

%all-reduce-scatter (input: f32[64,128]) -> f32[8,128] {
  %input = f32[64,128]{1,0} parameter(0)
  %sum = f32[64,128]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}
  %place = u32[] partition-id()
  ROOT %slice = f32[8,128]{1,0} dynamic-slice(%sum, %place, %place), dynamic_slice_sizes={8,128}
}

ENTRY %main (x: f32[64,128]) -> f32[8,128] {
  %x = f32[64,128]{1,0} parameter(0)
  ROOT %share = f32[8,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
}
""",
    'on another core': """HloModule m

%scatter (input: f32[64,128]) -> f32[8,128] {
  %input = f32[64,128]{1,0} parameter(0)
  ROOT %sum = f32[8,128]{1,0} reduce-scatter(%input), channel_id=1, \
replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (x: f32[64,128]) -> f32[8,128] {
  %x = f32[64,128]{1,0} parameter(0)
  %start = ((f32[64,128]{1,0}), f32[8,128]{1,0}) call-start(%x), \
async_execution_thread="sparsecore", to_apply=%scatter
  ROOT %done = f32[8,128]{1,0} call-done(%start)
}
""",
}


@pytest.mark.parametrize('text', SCATTERED.values(), ids=SCATTERED)
def test_a_sum_of_which_each_keeps_its_share(text):
    mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(AxisType.Auto,))
    (row,) = collectives.summary(hlo.parse(text), mesh, TOPOLOGY)
    assert (row['kind'], row['bytes'], row['count']) == ('reduce-scatter', 4 * 64 * 128, 1)
    assert row['seconds'] == pytest.approx(4 * 64 * 128 * 7 / 8 / TOPOLOGY.chip.link_bandwidth)


def test_a_sum_that_a_fusion_gives_whole():
    text = SCATTERED['fused'].replace('%all-reduce-scatter', '%sum_fusion')
    slice_of_sum = re.compile(r'  %place.*\n  ROOT %slice.*\n')
    text = slice_of_sum.sub('', text).replace('  %sum =', '  ROOT %sum =').replace('[8,', '[64,')
    mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(AxisType.Auto,))
    (row,) = collectives.summary(hlo.parse(text), mesh, TOPOLOGY)
    assert (row['kind'], row['bytes'], row['count']) == ('all-reduce', 4 * 64 * 128, 1)


SEND = """  %x = f32[1,4,128]{2,1,0:T(4,128)} parameter(0)
  %after = token[] after-all()
  ROOT %send = (f32[1,4,128]{2,1,0:T(4,128)}, u32[], token[]) send(%x, %after), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}"""


def test_a_sum_between_slices(mesh):
    topology = Topology('2xv5e:2x2', CHIPS['v5e'], jax.devices(), (2, 2), 2)
    (row,) = collectives.summary(hlo.parse(module(SEND)), mesh, topology)
    assert (row['kind'], row['bytes'], row['network']) == ('all-reduce', 2048, 'dcn')
    assert (row['axes'], row['devices']) == (('data',), 2)
    assert row['seconds'] == pytest.approx(2048 / topology.chip.dcn_bandwidth)


def test_bytes_of_a_layout():
    (array,) = hlo.parse(module(TILED)).root.arrays
    assert array.num_bytes == 2 * 4 * 100 * 64
    assert array.stored_bytes == 2 * 4 * 104 * 128  # whole tiles of 8x128
    assert array.space == 1


TILED = '  ROOT %x = bf16[4,100,64]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)'


def test_a_run_takes_from_its_slowest_resource_to_all_of_them():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P('data'))
    x, kernel = (
        jax.ShapeDtypeStruct((8, 256, 256), np.float32, sharding=sharding),
        jax.ShapeDtypeStruct((256, 256), np.float32, sharding=NamedSharding(mesh, P())),
    )
    lowered = jax.jit(lambda x, kernel: (x @ kernel).sum(axis=0)).lower(x, kernel)
    run = estimate(compile_program(lowered, CHIPS['v5e']), mesh, TOPOLOGY)
    chip = TOPOLOGY.chip
    assert run.flops == 2 * 256**3
    assert run.ideal['hbm'] == 4 * (3 * 256**2) / chip.hbm_bandwidth  # two arguments, one result
    assert run.ideal_seconds == max(run.ideal.values())
    assert run.ideal['interconnect'] == run.compiled['interconnect'] > 0
    assert run.compiled_seconds >= max(run.flops / chip.peak_flops, run.ideal_seconds)
    assert run.compiled_seconds >= run.hbm_bytes / chip.hbm_bandwidth
