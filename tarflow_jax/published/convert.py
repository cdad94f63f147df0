"""Published PyTorch checkpoints (state dicts of apple/ml-tarflow) as models of ours, and back."""

import collections
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from tarflow_jax.errors import InputError
from tarflow_jax.flow import patches
from tarflow_jax.flow.tarflow import TarFlow
from tarflow_jax.parallel import arrays
from tarflow_jax.parallel.rules import name_of
from tarflow_jax.published import layout
from tarflow_jax.published.name import EXAMPLE, CheckpointName


def from_state_dict(
    tensors: Mapping[str, np.ndarray],
    *,
    image_shape=None,
    patch_size=None,
    name: CheckpointName | None = None,
    source='the state dict',
    shardings=None,
    **settings,
):
    """Converts a published state dict to a model and parameters.

    Every tensor must belong to the published network. An additional tensor, or a mask that is not
    causal, shows that the checkpoint is of a different network, for which the converted model would
    silently give wrong results. Masks and a variance of ones may be missing: they are computed.

    Args:
      tensors: arrays by their published names.
      image_shape: (H, W, C); by default square images, of one channel or three.
      patch_size: side of a patch, unless there is a name; the tensors do not determine it.
      name: the name of the file, which is then checked against the tensors.
      source: the name of the state dict in errors.
      shardings: a function from the tree of the parameters' shapes to their shardings.
      **settings: other attributes of the `TarFlow`, such as dtype.

    Returns:
      (model, params), the parameters float32: NumPy arrays, or laid out as `shardings` says, one
      after the other, so that no second copy is ever whole.

    Raises:
      InputError: tensors that are not a TarFlow's, or do not fit the name or the sizes.
    """
    tensors = {
        re.sub(r'^((module|_orig_mod)\.)+', '', name): tensor for name, tensor in tensors.items()
    }
    if 'blocks.0.proj_in.weight' not in tensors:
        raise InputError(
            f'{source} is not a TarFlow: it has no blocks.0.proj_in.weight. It holds '
            f'{len(tensors)} tensors, such as {sorted(tensors)[:3]}.'
        )
    model = _make_model(tensors, image_shape, patch_size, name, source, settings)
    check_tensors(tensors, model, source)
    return model, convert_params(tensors, model, shardings)


def _make_model(tensors, image_shape, patch_size, name, source, settings) -> TarFlow:
    try:
        sizes = infer_sizes(tensors)
        num_tokens, _ = tensors['blocks.0.pos_embed'].shape
        _, token_dim = tensors['blocks.0.proj_in.weight'].shape
    except KeyError as missing:
        raise InputError(f'{source} is incomplete: it has no tensor {missing}.') from None
    except IndexError:
        raise InputError(f'{source} is inconsistent: it has a tensor without axes.') from None
    except ValueError as error:  # of a tensor with more axes than it should have, or fewer
        raise InputError(f'{source} is inconsistent: {error}.') from error
    if name is not None:
        name.check_sizes(sizes, source)
    patch_size = choose_patch_size(patch_size, name, source)
    if image_shape is None:
        image_shape = infer_image_shape(num_tokens, token_dim, patch_size, source)
    check_image_shape(num_tokens, token_dim, image_shape, patch_size, source)
    return TarFlow(image_shape=image_shape, patch_size=patch_size, **sizes, **settings)


def choose_patch_size(patch_size: int | None, name: CheckpointName | None, source) -> int:
    """Returns the given size or that of the name; InputError if both are missing or they differ."""
    named = None if name is None else name.patch_size
    if patch_size is None and named is None:
        raise InputError(
            f'{source} does not record its patch_size: give patch_size=P (and '
            'image_shape=(H, W, C) if images are not square, or have neither one channel nor '
            f'three), or the name that the published code gives, such as {EXAMPLE}.'
        )
    if None not in (patch_size, named) and patch_size != named:
        raise InputError(
            f'{source} has patch_size={named} by its name; got patch_size={patch_size}.'
        )
    size = named if patch_size is None else patch_size
    if size is None or size < 1:
        raise InputError(f'patch_size must be at least 1; got {size}.')
    return size


def infer_sizes(tensors) -> dict:
    """Returns the TarFlow attributes that the tensors of a published state dict determine."""
    width, token_dim = tensors['blocks.0.proj_in.weight'].shape
    class_embed = tensors.get('blocks.0.class_embed')
    return dict(
        width=width,
        num_blocks=_count(tensors, r'blocks\.(\d+)\.'),
        layers_per_block=_count(tensors, r'blocks\.0\.attn_blocks\.(\d+)\.'),
        num_classes=0 if class_embed is None else class_embed.shape[0],
        head_dim=layout.HEAD_DIM,
        volume_preserving=tensors['blocks.0.proj_out.weight'].shape[0] == token_dim,
    )


def _count(tensors, pattern) -> int:
    numbers = {int(m[1]) for m in map(re.compile(pattern).match, tensors) if m}
    if numbers != set(range(len(numbers))):  # or a name could ask for a million blocks
        raise ValueError('its blocks or layers are not numbered one after the other')
    return len(numbers)


def infer_image_shape(num_tokens: int, token_dim: int, patch_size: int, source):
    """Returns (H, W, C) of square images of one channel or three; InputError for any others."""
    side = math.isqrt(num_tokens)
    channels = token_dim / patch_size**2
    if channels not in (1, 3):
        raise InputError(
            f'{source} has tokens of {token_dim} numbers, which with patch_size={patch_size} would '
            f'be {channels:g} channels. If that is so, give image_shape=(H, W, C); if images have '
            'one or three, patch_size, or the name that contains it, is wrong.'
        )
    if side**2 != num_tokens:
        raise InputError(
            f'{source} has {num_tokens} patches, which is not a square number: give '
            'image_shape=(H, W, C).'
        )
    return side * patch_size, side * patch_size, int(channels)


def check_image_shape(num_tokens: int, token_dim: int, image_shape, patch_size: int, source):
    """Raises InputError unless patches of such images are as many and as large as the tensors."""
    rows, columns = patches.grid_shape(image_shape, patch_size)
    shape = (rows * columns, image_shape[2] * patch_size**2)
    if shape != (num_tokens, token_dim):
        raise InputError(
            f'{source} is for {num_tokens} tokens of {token_dim} numbers (channels x patch_size^2);'
            f' image_shape={tuple(image_shape)} with patch_size={patch_size} gives {shape[0]} '
            f'tokens of {shape[1]}.'
        )


def check_tensors(tensors: Mapping[str, np.ndarray], model: TarFlow, source):
    """Raises InputError, naming the tensor, unless they are those of a published `model`."""
    expected = layout.tensor_shapes(model)
    for name, shape in expected.items():
        is_mask = name.endswith(layout.BLOCK[layout.MASK])
        if name not in tensors:
            if is_mask or (name == layout.VARIANCE and not model.volume_preserving):
                continue
            raise InputError(f"{source} is incomplete: it has no tensor '{name}'.")
        tensor = tensors[name]
        if tensor.shape != shape:
            raise InputError(f'{source} is inconsistent: {name} is {tensor.shape}, not {shape}.')
        if is_mask and not np.array_equal(tensor, np.tri(shape[0])):
            raise InputError(f'{source} belongs to a different network: its {name} is not causal.')
        if not is_mask and not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise InputError(
                f'{source} cannot be converted: {name} is of type {tensor.dtype}, not floating '
                'point.'
            )
        if not is_mask and not _is_finite(tensor):
            raise InputError(
                f'{source} cannot be used: {name} has values that are not finite in float32; the '
                'model may have diverged. Take an earlier checkpoint.'
            )
    if unknown := [name for name in tensors if name not in expected]:
        raise InputError(
            f'{source} has tensors that the published network does not have, such as {unknown[0]} '
            f'({len(unknown)} in total). Remove tensors that the network does not use.'
        )
    if not model.volume_preserving and np.any(tensors.get(layout.VARIANCE, 1) != 1):
        raise InputError(
            f'{source} belongs to a different network: it has scales, but its prior variance '
            f'({layout.VARIANCE}) is not all ones.'
        )


def _is_finite(tensor: np.ndarray) -> bool:
    with np.errstate(over='ignore'):  # of float64 beyond the range of float32
        return bool(np.isfinite(tensor.astype(np.float32, copy=False)).all())


def convert_params(tensors: Mapping[str, np.ndarray], model: TarFlow, shardings=None):
    """Converts checked tensors to the parameters of `model`; see `from_state_dict`."""
    parts = collections.defaultdict(list)
    for tensor, name, index in layout.entries(model):
        parts[name].append((tensor, index))

    def convert(path, leaf, sharding=None):
        name = name_of(path).removeprefix('blocks/')
        array = np.empty(leaf.shape, np.float32)
        if name == 'prior_var':
            array[:] = model.unpatchify(tensors[layout.VARIANCE][None])[0]
        for tensor, index in parts[name]:
            shape = leaf.shape[len(index) :]
            array[index] = layout.from_published(tensors[tensor], name, index[0], shape)
        if sharding is None:
            return array
        return jax.block_until_ready(arrays.put(array, sharding))  # and let go of `array`

    shapes = model.param_shapes()
    trees = [shapes] if shardings is None else [shapes, shardings(shapes)]
    return jax.tree_util.tree_map_with_path(convert, *trees)


def to_state_dict(model: TarFlow, params) -> dict[str, np.ndarray]:
    """Returns the published state dict of a model: float32 tensors by name, in its order.

    Most are views of the parameters, in other orders of the axes.

    Raises:
      InputError: the published code has no such model.
    """
    check_can_be_published(model)
    params = jax.device_get(params)
    ours: dict[str, Any] = flatten_dict(params['blocks'], sep='/')
    mask = np.tri(model.token_flow().num_tokens, dtype=np.float32)
    variance = params.get('prior_var', np.ones(model.image_shape, np.float32))
    tensors = {layout.VARIANCE: np.asarray(model.patchify(variance[None])[0])}
    for tensor, name, index in layout.entries(model):
        is_mask = name == layout.MASK
        tensors[tensor] = (
            mask if is_mask else layout.to_published(ours[name][index], name, index[0])
        )
    return tensors


def check_can_be_published(model: TarFlow):
    """Raises InputError for a model that the published code cannot build."""
    height, width, _ = model.image_shape
    if height != width:
        raise InputError(
            f'the published code supports square images only; got {height}x{width} pixels.'
        )
    if model.head_dim != layout.HEAD_DIM:
        raise InputError(
            f'the published code supports head_dim={layout.HEAD_DIM} only; got {model.head_dim}.'
        )
