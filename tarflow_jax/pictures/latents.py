"""Latents by block: do they look like noise?"""

from collections.abc import Sequence

import numpy as np

from tarflow_jax.pictures.picture import (
    INK,
    VERMILION,
    Picture,
    house_style,
    ordered_colors,
    panels,
)
from tarflow_jax.pictures.tiles import as_stages, rows, scale_for_display

_BINS = np.linspace(-4, 4, 81)


def latents(stages, captions: Sequence[str] = (), seed: int = 0) -> Picture:
    """Images on their way to noise, with real noise below to compare.

    Args:
      stages: float [num_blocks + 1, B, H, W, C]: the images, then the latents after each block.
      captions: column headings.
      seed: of the noise in the last row.
    """
    stages = as_stages(stages)
    last = len(stages) - 1
    noise = np.random.default_rng(seed).standard_normal(stages.shape[1:], np.float32)
    named = {'images': stages[0]}
    named |= {
        f'after block {block} of {last}': scale_for_display(stages[block])
        for block in range(1, last + 1)
    }
    return rows({**named, 'noise, for comparison': scale_for_display(noise)}, captions)


@house_style
def latent_statistics(stages) -> Picture:
    """What latents have in common with noise, by block: density, deviation, correlation.

    Args:
      stages: float [num_blocks + 1, B, H, W, C] as for `latents`; the more images, the better.
    """
    stages = as_stages(stages).astype(np.float64)
    last = len(stages) - 1
    picture, (density, deviation, correlation) = panels(2.5, 1.5, 1.5)
    middles = (_BINS[1:] + _BINS[:-1]) / 2
    for block, (stage, color) in enumerate(zip(stages, ordered_colors(last + 1), strict=True)):
        heights, _ = np.histogram(stage, _BINS, density=True)
        name = {0: 'images', last: f'after block {last}'}.get(block)
        width = 2.2 if name else 1.0
        density.plot(middles, heights, color=color, label=name, linewidth=width)
    normal = np.exp(-(middles**2) / 2) / np.sqrt(2 * np.pi)
    density.plot(middles, normal, '--', color=INK, label='N(0, 1)', linewidth=1.4)
    density.set(title='density of the pixels', ylim=(0, 2.2 * normal.max()))
    density.legend(loc='upper right')
    blocks = np.arange(last + 1)
    deviation.plot(blocks, [stage.std() for stage in stages], 'o-')
    _mark(deviation, 1, 'standard deviation', last)
    correlation.plot(blocks, [neighbour_correlation(stage) for stage in stages], 'o-')
    _mark(correlation, 0, 'correlation of neighbouring pixels', last)
    correlation.set(xlabel='blocks passed')
    return picture


def neighbour_correlation(images) -> float:
    """The correlation of pixels with their neighbours to the right and below, over [B, H, W, C].

    It is 0 for white noise and for images of a single pixel. The mean of each pixel over the images
    is subtracted first, so that structure that all images share does not count.
    """
    centred = images - images.mean(axis=0)
    pairs = [(centred[:, :, 1:], centred[:, :, :-1]), (centred[:, 1:], centred[:, :-1])]
    products = sum((a * b).sum() for a, b in pairs)
    squares = sum((a**2 + b**2).sum() / 2 for a, b in pairs)
    return float(products / squares) if squares else 0.0


def _mark(panel, ideal: float, title: str, last: int) -> None:
    panel.axhline(ideal, color=VERMILION, linestyle='--', linewidth=1.2, label='noise')
    low, high = panel.get_ylim()
    panel.set(title=title, ylim=(min(low, ideal - 0.1), max(high, ideal + 0.1)))
    panel.set_xticks(range(last + 1))
    panel.legend(loc='best')
