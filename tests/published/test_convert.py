"""Nothing is lost on the way here and back; what is wrong with a state dict is said.

That good ones mean the same here, golden/ shows.
"""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from tarflow_jax.errors import InputError
from tarflow_jax.flow import TarFlow
from tarflow_jax.formats.torchfile import read_state_dict
from tarflow_jax.published.convert import from_state_dict, to_state_dict
from tarflow_jax.published.name import CheckpointName

SHAPE = dict(image_shape=(8, 8, 3), patch_size=2)
NAME = CheckpointName('toy', 2, 64, 3, 2, 'gaussian', 0.1)

SMALL = dict(width=128, num_blocks=3, layers_per_block=2)
MODELS = {
    'conditional': TarFlow((4, 4, 3), 2, num_classes=3, **SMALL),
    'volume_preserving': TarFlow((6, 6, 1), 2, volume_preserving=True, **SMALL),
    'two_channels': TarFlow((2, 2, 2), 1, **SMALL),
}


@pytest.fixture(scope='module')
def tensors(golden_dir):
    return read_state_dict(golden_dir / 'cond.pth')


@pytest.mark.parametrize(('name', 'patch_size'), [('cond', 2), ('uncond', 2), ('vp', 4)])
def test_published_tensors_come_back_as_they_were(golden_dir, name, patch_size):
    published = read_state_dict(golden_dir / f'{name}.pth')
    written = to_state_dict(*from_state_dict(published, patch_size=patch_size))
    assert list(written) == list(published)
    for key, tensor in published.items():
        assert written[key].dtype == tensor.dtype == np.float32
        np.testing.assert_array_equal(written[key], tensor, strict=True)


@pytest.mark.parametrize('name', MODELS)
def test_parameters_come_back_as_they_were(random_params, name):
    model = MODELS[name]
    params = random_params(model)
    sizes = dict(image_shape=model.image_shape, patch_size=model.patch_size)
    same_model, same_params = from_state_dict(to_state_dict(model, params), **sizes)
    assert same_model == model
    jax.tree.map(np.testing.assert_array_equal, same_params, params)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(head_dim=32), 'the published code supports head_dim=64 only; got 32'),
        (
            dict(image_shape=(4, 2, 3)),
            'the published code supports square images only; got 4x2 pixels',
        ),
    ],
)
def test_models_that_the_published_code_lacks_are_refused(changes, message):
    model = dataclasses.replace(MODELS['conditional'], **changes)
    with pytest.raises(InputError, match=message):
        to_state_dict(model, {})


def test_parameters_are_laid_out_as_asked(tensors):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    _, params = from_state_dict(
        tensors, **SHAPE, shardings=lambda shapes: jax.tree.map(lambda _: device, shapes)
    )
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {device}


def test_square_images_are_told_by_the_patch_size(tensors):
    model, _ = from_state_dict(tensors, patch_size=2)
    assert model.image_shape == (8, 8, 3)


def test_images_that_are_not_square_have_to_be_described(tensors):
    long = {n: t[:12] if n.endswith('pos_embed') else t for n, t in without_masks(tensors).items()}
    del long['var']
    with pytest.raises(
        InputError, match=r'12 patches, which is not a square number: give image_shape'
    ):
        from_state_dict(long, patch_size=2)
    model, _ = from_state_dict(long, image_shape=(4, 12, 3), patch_size=2)
    assert model.image_shape == (4, 12, 3)


@pytest.mark.parametrize(('patch_size', 'channels'), [(1, '12'), (4, '0.75')])
def test_a_patch_size_that_makes_odd_channels_is_refused(tensors, patch_size, channels):
    message = f'12 numbers, which with patch_size={patch_size} would be {channels} channels'
    with pytest.raises(InputError, match=message):
        from_state_dict(tensors, patch_size=patch_size)


def test_a_patch_size_is_needed(tensors):
    with pytest.raises(InputError, match='does not record its patch_size'):
        from_state_dict(tensors)
    with pytest.raises(InputError, match='at least 1; got 0'):
        from_state_dict(tensors, patch_size=0)


def test_a_name_tells_the_patch_size(tensors):
    model, _ = from_state_dict(tensors, name=NAME)
    assert (model.patch_size, model.image_shape) == (2, (8, 8, 3))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(width=768), 'width is 768 in its name and 64 in its tensors'),
        (dict(num_blocks=8), 'num_blocks is 8 in its name and 3 in its tensors'),
        (dict(layers_per_block=8), 'layers_per_block is 8 in its name and 2 in its tensors'),
        (dict(patch_size=4), r'tokens of 12 numbers, which with patch_size=4 .* 0\.75 channels'),
    ],
)
def test_a_name_that_says_otherwise_is_refused(tensors, changes, message):
    with pytest.raises(InputError, match=f'f.pth .*{message}'):
        from_state_dict(tensors, name=dataclasses.replace(NAME, **changes), source='f.pth')


def test_sizes_that_contradict_the_name_are_refused(tensors):
    with pytest.raises(InputError, match='patch_size=2 by its name; got patch_size=4'):
        from_state_dict(tensors, name=NAME, patch_size=4)
    with pytest.raises(InputError, match=r'for 16 tokens .*\(16, 16, 3\) .* gives 64 tokens'):
        from_state_dict(tensors, name=NAME, image_shape=(16, 16, 3))


@pytest.mark.parametrize(
    'prefix', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.']
)
def test_the_prefixes_of_parallel_and_compiled_models_are_dropped(tensors, prefix):
    model, params = from_state_dict(tensors, **SHAPE)
    prefixed = {prefix + name: tensor for name, tensor in tensors.items()}
    same_model, same_params = from_state_dict(prefixed, **SHAPE)
    assert same_model == model
    np.testing.assert_array_equal(same_params['blocks']['pos_embed'], params['blocks']['pos_embed'])


def test_settings_are_handed_to_the_model(tensors):
    model, params = from_state_dict(tensors, **SHAPE, dtype='bfloat16', unroll='blocks')
    assert (model.dtype, model.unroll) == ('bfloat16', 'blocks')
    assert params['blocks']['pos_embed'].dtype == np.float32


@pytest.mark.parametrize(
    'name',
    [
        'blocks.0.pos_embed',
        'blocks.0.proj_out.weight',
        'blocks.1.class_embed',
        'blocks.1.attn_blocks.0.attention.qkv.bias',
        'blocks.2.attn_blocks.1.mlp.main.2.weight',
    ],
)
def test_a_missing_tensor_is_named(tensors, name):
    incomplete = {n: tensor for n, tensor in tensors.items() if n != name}
    with pytest.raises(InputError, match=f"the file is incomplete: it has no tensor '{name}'"):
        from_state_dict(incomplete, **SHAPE, source='the file')


def test_another_network_is_refused():
    others = {'conv1.weight': np.zeros((1, 1)), 'fc.bias': np.zeros(1)}
    message = (
        r"net\.pth is not a TarFlow.* holds 2 tensors, such as \['conv1\.weight', 'fc\.bias'\]"
    )
    with pytest.raises(InputError, match=message):
        from_state_dict(others, **SHAPE, source='net.pth')


@pytest.mark.parametrize(
    ('image_shape', 'patch_size', 'message'),
    [
        ((16, 16, 3), 2, r'is for 16 tokens of 12 .*\(16, 16, 3\) .* gives 64 tokens of 12'),
        ((8, 8, 1), 2, r'is for 16 tokens of 12 .* gives 16 tokens of 4'),
        ((8, 8, 3), 4, r'is for 16 tokens of 12 .* patch_size=4 gives 4 tokens of 48'),
        ((8, 8, 3), 3, 'patches of 3x3'),
    ],
)
def test_an_image_shape_that_does_not_fit_is_refused_with_both_numbers(
    tensors, image_shape, patch_size, message
):
    with pytest.raises(InputError, match=message):
        from_state_dict(tensors, image_shape=image_shape, patch_size=patch_size)


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('blocks.0.proj_in.weight', (64, 12, 1)),
        ('blocks.1.proj_out.weight', (12, 64)),
        ('blocks.0.proj_out.weight', ()),
        ('blocks.0.class_embed', ()),
        ('blocks.1.pos_embed', (17, 64)),
        ('blocks.0.attn_blocks.0.attention.norm.weight', (65,)),
        ('blocks.2.attn_blocks.0.attention.qkv.weight', (64, 64)),
    ],
)
def test_tensors_that_do_not_hold_together_are_refused(tensors, name, shape):
    wrong = {**tensors, name: np.zeros(shape, np.float32)}
    with pytest.raises(InputError, match='is inconsistent'):
        from_state_dict(wrong, **SHAPE)


def test_no_attention_layers_are_refused(tensors):
    without = {name: t for name, t in tensors.items() if '.attn_blocks.' not in name}
    with pytest.raises(InputError, match='layers_per_block must be at least 1; got 0'):
        from_state_dict(without, **SHAPE)


def without_masks(tensors):
    return {name: tensor for name, tensor in tensors.items() if not name.endswith('attn_mask')}


def test_masks_and_a_variance_of_ones_may_be_missing(tensors):
    few = without_masks(tensors)
    assert len(few) == len(tensors) - 3
    del few['var']
    _, params = from_state_dict(few, **SHAPE)
    _, expected = from_state_dict(tensors, **SHAPE)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(
    ('name', 'tensor', 'message'),
    [
        ('blocks.0.sos_embed', np.zeros((1, 64)), r'such as blocks.0.sos_embed \(1 in total\)'),
        ('blocks.1.attn_mask', np.ones((16, 16)), 'its blocks.1.attn_mask is not causal'),
        ('blocks.1.attn_mask', np.tri(17), 'attn_mask is .17, 17., not .16, 16.'),
        ('blocks.1.proj_in.bias', np.zeros(64, np.int8), 'proj_in.bias is of type int8'),
        ('blocks.1.proj_in.bias', np.full(64, np.nan), 'proj_in.bias has values that are not fini'),
        ('blocks.1.proj_in.bias', np.full(64, 1e300), 'proj_in.bias has values that are not fini'),
        ('var', np.full((16, 12), 2.0), r'its prior variance \(var\) is not all ones'),
    ],
)
def test_tensors_of_another_network_are_refused(tensors, name, tensor, message):
    with pytest.raises(InputError, match=message):
        from_state_dict({**tensors, name: tensor}, **SHAPE)


def test_a_variance_is_needed_where_volume_is_preserved(golden_dir):
    tensors = read_state_dict(golden_dir / 'vp.pth')
    del tensors['var']
    with pytest.raises(InputError, match="incomplete: it has no tensor 'var'"):
        from_state_dict(tensors, patch_size=4)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floating_types_become_float32(tensors, dtype):
    _, params = from_state_dict({n: t.astype(dtype) for n, t in tensors.items()}, **SHAPE)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    kernel = tensors['blocks.0.proj_in.weight'].astype(dtype).astype(np.float32).T
    np.testing.assert_array_equal(params['blocks']['proj_in']['kernel'][0], kernel)


@pytest.mark.parametrize('name', ['blocks.1000000000.x', 'blocks.0.attn_blocks.7.x'])
def test_a_name_does_not_ask_for_a_million_blocks(tensors, name):
    with pytest.raises(InputError, match='are not numbered one after the other'):
        from_state_dict({**tensors, name: np.zeros(1, np.float32)}, **SHAPE)
