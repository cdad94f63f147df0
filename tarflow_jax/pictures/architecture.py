"""The architecture of a model, drawn from its sizes."""

import math
from typing import Any

from matplotlib.patches import FancyBboxPatch

from tarflow_jax.flow.patches import grid_shape
from tarflow_jax.flow.tarflow import count_parameters
from tarflow_jax.pictures.picture import BLUE, FAINT, VERMILION, WIDTH, Picture, blank, house_style
from tarflow_jax.quantities import format_count, shorten

MAX_BLOCKS = 8  # that are drawn; if there are more, those in the middle are only counted
_ENDS = 3  # blocks that are drawn at either end then
_LINE, _BLOCK, _CELL = 0.3, 0.62, 0.2  # inches
_TOKENS = 16  # that are drawn of a sequence, at most


@house_style
def architecture(model) -> Picture:
    """From the image through its tokens and the blocks, of alternating direction, to the latents.

    Args:
      model: a `TarFlow`.
    """
    blocks = _drawn_blocks(model.num_blocks)
    picture, panel = blank(2.3 + _BLOCK * len(blocks))
    top = _draw_input(panel, model)
    for block in blocks:
        top = _draw_block(panel, model, block, top)
    _draw_output(panel, model, top)
    return picture


def _drawn_blocks(count: int) -> list[int | None]:
    """The numbers of the blocks that are drawn; None for those that are left out."""
    if count <= MAX_BLOCKS:
        return list(range(1, count + 1))
    return [*range(1, _ENDS + 1), None, *range(count - _ENDS + 1, count + 1)]


def _draw_input(panel, model) -> float:
    height, width, channels = model.image_shape
    rows, columns = grid_shape(model.image_shape, model.patch_size)
    colors = {1: 'grey', 3: 'colour'}.get(channels, f'{channels} channels')
    _text(panel, 0.2, f'image x: {height}×{width}, {colors}', weight='bold')
    _text(
        panel,
        0.2 + _LINE,
        f'{rows}×{columns} patches of {model.patch_size}×{model.patch_size}: '
        f'{rows * columns:,} tokens of {channels * model.patch_size**2} numbers',
    )
    return _draw_tokens(panel, rows * columns, BLUE, 0.2 + 1.75 * _LINE)


def _draw_tokens(panel, count: int, color: str, top: float) -> float:
    """Draws a row of tokens; returns where the next part begins."""
    shown = min(count, _TOKENS)
    left = (WIDTH - shown * _CELL * 1.25) / 2
    for i in range(shown):
        x = left + i * _CELL * 1.25
        if count > shown and i == shown // 2:
            _text(panel, top + _CELL / 2, '…', x=x + _CELL / 2)
        else:
            style = dict(facecolor=color, alpha=0.75, linewidth=0)
            _rectangle(panel, x, top, _CELL, _CELL, **style)
    return top + _CELL + 0.16


def _draw_block(panel, model, block: int | None, top: float) -> float:
    middle = top + _BLOCK / 2 - 0.05
    if block is None:
        _text(panel, middle, f'⋮   {model.num_blocks - 2 * _ENDS} more blocks, alternating', x=2.6)
        return top + _BLOCK
    forwards = block % 2 == 1
    color = BLUE if forwards else VERMILION
    _rectangle(
        *(panel, 0.25, top, WIDTH - 0.5, _BLOCK - 0.1),
        **dict(facecolor=color, alpha=0.13, linewidth=0),
    )
    _text(panel, middle, f'block {block}', x=0.4, ha='left', weight='bold')
    ends = (1.35, 2.45) if forwards else (2.45, 1.35)
    panel.annotate(
        '',
        xy=(ends[1], middle),
        xytext=(ends[0], middle),
        arrowprops=dict(arrowstyle='-|>', color=color, linewidth=2, mutation_scale=15),
    )
    heads = model.width // model.head_dim
    words = f'{format_count(model.layers_per_block, "layer")}, width {model.width}'
    _text(panel, middle - 0.11, words, x=2.65, ha='left', size=9)
    words = f'causal attention, {format_count(heads, "head")}'
    _text(panel, middle + 0.11, words, x=2.65, ha='left', size=9)
    return top + _BLOCK


def _draw_output(panel, model, top: float) -> None:
    tokens = math.prod(grid_shape(model.image_shape, model.patch_size))
    top = _draw_tokens(panel, tokens, FAINT, top + 0.08)
    scale = '' if model.volume_preserving else r'\ e^{-\alpha_t(x_{<t})}'
    _text(panel, top + 0.08, 'latents z: noise of the image’s shape', weight='bold')
    formula = rf'each block: $z_t = (x_t - \mu_t(x_{{<t}})){scale}$'
    _text(panel, top + 0.08 + _LINE, formula)
    total = shorten(count_parameters(model.param_shapes()))
    classes = f', {model.num_classes} classes' if model.num_classes else ''
    _text(panel, top + 0.08 + 2 * _LINE, f'{total} parameters{classes}', weight='bold')


def _text(panel, y: float, words: str, x: float = WIDTH / 2, ha: str = 'center', **style: Any):
    panel.text(x, y, words, ha=ha, va='center', **style)


def _rectangle(panel, left: float, top: float, width: float, height: float, **style: Any) -> None:
    box = 'round,pad=0,rounding_size=0.04'
    panel.add_patch(FancyBboxPatch((left, top), width, height, boxstyle=box, **style))
