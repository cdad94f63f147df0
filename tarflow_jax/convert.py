"""Published PyTorch checkpoints (state dicts of apple/ml-tarflow) as models and parameters of ours.

Two things differ between the layouts. Position embeddings there are in image order, here in each
block's own token order, so those of every second block are reversed. Blocks and layers there are
named one by one, here they are stacked.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.errors import InputError
from tarflow_jax.flow import patches
from tarflow_jax.flow.tarflow import TarFlow

HEAD_DIM = 64  # of every published model; the tensors do not tell


def from_state_dict(tensors, *, image_shape, patch_size, source='the state dict', **settings):
    """The model and parameters that a published state dict holds.

    Args:
      tensors: arrays by their published names.
      image_shape: (H, W, C) of the images; it cannot be told from the tensors.
      patch_size: side of a patch, which cannot either.
      source: what to call the state dict in errors.
      **settings: other attributes of the `TarFlow`, such as dtype.

    Returns:
      (model, params), the parameters as NumPy arrays.

    Raises:
      InputError: tensors that are not a TarFlow's or do not fit image_shape and patch_size.
    """
    tensors = {
        re.sub(r'^((module|_orig_mod)\.)+', '', name): tensor for name, tensor in tensors.items()
    }
    if 'blocks.0.proj_in.weight' not in tensors:
        raise InputError(
            f'{source} is not a TarFlow: it has no blocks.0.proj_in.weight. It holds '
            f'{len(tensors)} tensors, such as {sorted(tensors)[:3]}.'
        )
    try:
        sizes = infer_sizes(tensors)
        check_image_shape(tensors, image_shape, patch_size, source)
        model = TarFlow(image_shape=image_shape, patch_size=patch_size, **sizes, **settings)
        params = convert_params(tensors, model)
    except InputError:
        raise
    except KeyError as missing:
        raise InputError(f'{source} is incomplete: it has no tensor {missing}.') from None
    except ValueError as error:  # of tensors that cannot be stacked or cut as they should
        raise InputError(f'{source} does not hold together: {error}.') from error
    check_shapes(params, model, source)
    return model, params


def infer_sizes(tensors) -> dict:
    """The TarFlow attributes that the tensors of a published state dict tell."""
    _, token_dim = tensors['blocks.0.proj_in.weight'].shape
    width = tensors['blocks.0.proj_in.weight'].shape[0]
    class_embed = tensors.get('blocks.0.class_embed')
    return dict(
        width=width,
        num_blocks=_count(tensors, r'blocks\.(\d+)\.'),
        layers_per_block=_count(tensors, r'blocks\.0\.attn_blocks\.(\d+)\.'),
        num_classes=0 if class_embed is None else len(class_embed),
        head_dim=HEAD_DIM,
        volume_preserving=len(tensors['blocks.0.proj_out.weight']) == token_dim,
    )


def check_image_shape(tensors, image_shape, patch_size, source):
    """Raises InputError unless patches of such images are as many and as large as the tensors."""
    num_tokens, _ = tensors['blocks.0.pos_embed'].shape
    _, token_dim = tensors['blocks.0.proj_in.weight'].shape
    rows, columns = patches.grid_shape(image_shape, patch_size)
    asked = (rows * columns, image_shape[2] * patch_size**2)
    if asked != (num_tokens, token_dim):
        raise InputError(
            f'{source} is for {num_tokens} tokens of {token_dim} numbers (channels x patch_size^2);'
            f' image_shape={tuple(image_shape)} with patch_size={patch_size} gives {asked[0]} '
            f'tokens of {asked[1]}.'
        )


def convert_params(tensors, model: TarFlow):
    """Published tensors as the parameters of `model`, float32 NumPy arrays."""
    blocks = [_block(tensors, i, model) for i in range(model.num_blocks)]
    params = {'blocks': jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}
    if model.volume_preserving:
        params['prior_var'] = np.asarray(model.from_tokens(tensors['var'][None], depth=0))[0]
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)


def _block(tensors, i, model):
    prefix = f'blocks.{i}'
    pos_embed = tensors[f'{prefix}.pos_embed']
    layers = [
        _layer(tensors, f'{prefix}.attn_blocks.{j}', model.head_dim)
        for j in range(model.layers_per_block)
    ]
    out_kernel, out_bias = _linear(tensors, f'{prefix}.proj_out')
    outputs = 1 if model.volume_preserving else 2  # log_scale, shift
    block = {
        'proj_in': _dense(tensors, f'{prefix}.proj_in'),
        'pos_embed': pos_embed[::-1] if i % 2 else pos_embed,
        'layers': jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
        'proj_out': {
            'kernel': out_kernel.reshape(len(out_kernel), outputs, -1),
            'bias': out_bias.reshape(outputs, -1),
        },
    }
    if model.num_classes:
        block['class_embed'] = tensors[f'{prefix}.class_embed'][:, 0]
    return block


def _layer(tensors, prefix, head_dim):
    qkv_kernel, qkv_bias = _linear(tensors, f'{prefix}.attention.qkv')
    out_kernel, out_bias = _linear(tensors, f'{prefix}.attention.proj')
    width = len(qkv_kernel)
    return {
        'attention_norm': _norm(tensors, f'{prefix}.attention.norm'),
        'attention': {
            'qkv': {
                'kernel': qkv_kernel.reshape(width, 3, -1, head_dim).swapaxes(1, 2),
                'bias': qkv_bias.reshape(3, -1, head_dim).swapaxes(0, 1),
            },
            'out': {'kernel': out_kernel.reshape(-1, head_dim, width), 'bias': out_bias},
        },
        'mlp_norm': _norm(tensors, f'{prefix}.mlp.norm'),
        'mlp': {
            'up': _dense(tensors, f'{prefix}.mlp.main.0'),
            'down': _dense(tensors, f'{prefix}.mlp.main.2'),
        },
    }


def _linear(tensors, name):
    return tensors[f'{name}.weight'].T, tensors[f'{name}.bias']


def _dense(tensors, name):
    return dict(zip(('kernel', 'bias'), _linear(tensors, name), strict=True))


def _norm(tensors, name):
    return {'scale': tensors[f'{name}.weight'], 'bias': tensors[f'{name}.bias']}


def _count(tensors, pattern) -> int:
    numbers = {int(m[1]) for m in map(re.compile(pattern).match, tensors) if m}
    return max(numbers, default=-1) + 1


def check_shapes(params, model: TarFlow, source):
    """Raises InputError, naming the parameter, where a shape is not what `model` expects."""
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.image_shape)))

    def check(path, leaf, want):
        if leaf.shape != want.shape:
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            raise InputError(
                f'{source} does not hold together: {name} is {leaf.shape}, not {want.shape}.'
            )

    jax.tree_util.tree_map_with_path(check, params, expected['params'])
