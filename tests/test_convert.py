"""What is wrong with a state dict is said; that good ones convert right, golden/ shows."""

from pathlib import Path

import numpy as np
import pytest

from tarflow_jax.convert import from_state_dict
from tarflow_jax.errors import InputError
from tarflow_jax.torchfile import read_state_dict

SHAPE = dict(image_shape=(8, 8, 3), patch_size=2)


@pytest.fixture(scope='module')
def tensors():
    return read_state_dict(Path(__file__).parent / 'golden' / 'cond.pth')


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
    model, params = from_state_dict(tensors, **SHAPE, dtype='bfloat16', unroll=True)
    assert (model.dtype, model.unroll) == ('bfloat16', True)
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
        ('blocks.1.pos_embed', (17, 64)),
        ('blocks.0.attn_blocks.0.attention.norm.weight', (65,)),
        ('blocks.2.attn_blocks.0.attention.qkv.weight', (64, 64)),
    ],
)
def test_tensors_that_do_not_hold_together_are_refused(tensors, name, shape):
    wrong = {**tensors, name: np.zeros(shape, np.float32)}
    with pytest.raises(InputError, match='does not hold together'):
        from_state_dict(wrong, **SHAPE)


def test_no_attention_layers_are_refused(tensors):
    without = {name: t for name, t in tensors.items() if '.attn_blocks.' not in name}
    with pytest.raises(InputError, match='layers_per_block must be at least 1; got 0'):
        from_state_dict(without, **SHAPE)


def test_extra_tensors_such_as_masks_do_no_harm(tensors):
    model, _ = from_state_dict(
        {**tensors, 'blocks.0.mask_that_is_not_used': np.zeros((16, 16))}, **SHAPE
    )
    assert model.num_blocks == 3
