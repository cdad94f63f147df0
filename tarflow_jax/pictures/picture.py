"""The common style of all pictures: stacked panels, narrow enough to be readable on a phone.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; ordered quantities
use a part of viridis. All of them contrast with white and with near-black. SVG pictures have a
transparent background, and their text follows the light or dark theme of the page.
"""

import io
import os
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from tarflow_jax.errors import InputError
from tarflow_jax.files import write_atomically

WIDTH = 5.2  # inches, of every picture
DPI = 150  # of a picture as PNG, and of photographs inside an SVG
INK, FAINT, PAPER = '#1f2328', '#8b949e', '#ffffff'
BLUE, VERMILION, GREEN, PURPLE, ORANGE = '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00'
_DARK_INK = '#e6edf3'  # instead of INK, where the page is dark
_ORDERED = 0.28, 0.78  # the part of viridis that is neither too dark nor too light

_SETTINGS = {
    'axes.axisbelow': True,
    'axes.edgecolor': FAINT,
    'axes.grid': True,
    'axes.labelcolor': INK,
    'axes.labelsize': 10,
    'axes.prop_cycle': cycler(color=(BLUE, VERMILION, GREEN, PURPLE, ORANGE)),
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlecolor': INK,
    'axes.titlelocation': 'left',
    'axes.titlesize': 11,
    'axes.titleweight': 'bold',
    'figure.facecolor': PAPER,
    'axes.facecolor': 'none',
    'font.size': 10,
    'grid.alpha': 0.25,
    'grid.color': FAINT,
    'legend.frameon': False,
    'legend.labelcolor': INK,
    'lines.linewidth': 1.8,
    'text.color': INK,
    'xtick.color': FAINT,
    'xtick.labelcolor': INK,
    'ytick.color': FAINT,
    'xtick.labelsize': 9,
    'ytick.labelcolor': INK,
    'ytick.labelsize': 9,
    'svg.hashsalt': 'tarflow_jax',
}
# Decorates a function that draws, and is a context: these settings, and none of the user's.
house_style = matplotlib.rc_context(
    {k: v for k, v in matplotlib.rcParamsDefault.items() if k != 'backend'} | _SETTINGS
)


class Picture(Figure):
    """A Matplotlib figure that is displayed in notebooks and can be written to files."""

    @house_style
    def svg(self) -> str:
        """The picture as reproducible SVG, without a background, in the text colour of the page."""
        file = io.StringIO()
        metadata: dict[str, Any] = {'Date': None, 'Creator': None}
        self.savefig(file, format='svg', dpi=DPI, transparent=True, metadata=metadata)
        _, _, svg = file.getvalue().partition('<svg')
        head, _, body = svg.partition('>')
        ink = f':root{{--ink:{INK}}}@media(prefers-color-scheme:dark){{:root{{--ink:{_DARK_INK}}}}}'
        return f'<svg{head}><style>{ink}</style>{body.replace(INK, "var(--ink)")}'

    @house_style
    def png(self) -> bytes:
        """The picture as PNG on white, 780 pixels wide."""
        file = io.BytesIO()
        self.savefig(
            file, format='png', dpi=DPI, metadata={'Software': None}, pil_kwargs={'optimize': True}
        )
        return file.getvalue()

    def write(self, path: str | os.PathLike) -> None:
        """Writes the picture to `path`, a `.svg` or a `.png`, whole or not at all."""
        forms = {'.svg': lambda: self.svg().encode(), '.png': self.png}
        suffix = Path(path).suffix.lower()
        if suffix not in forms:
            raise InputError(f'a picture is written as .svg or .png; got {os.fspath(path)}.')
        content = forms[suffix]()
        write_atomically(path, lambda file: file.write(content))

    _repr_png_ = png


def blank(height: float) -> tuple[Picture, Any]:
    """A picture, and its only panel, in inches from the top left corner and without axes."""
    picture = Picture(figsize=(WIDTH, height))
    panel = picture.add_axes((0, 0, 1, 1))
    panel.set_axis_off()
    panel.set(xlim=(0, WIDTH), ylim=(height, 0))
    return picture, panel


def panels(*heights: float, share_x: bool = False) -> tuple[Picture, list[Any]]:
    """A picture, and its panels from top to bottom, with these heights in inches."""
    picture = Picture(figsize=(WIDTH, sum(heights)), layout='constrained')
    axes = picture.subplots(len(heights), sharex=share_x, squeeze=False, height_ratios=heights)
    return picture, list(axes[:, 0])


def ordered_colors(count: int) -> list[Any]:
    """Colours for `count` things in an order, such as blocks."""
    return list(matplotlib.colormaps['viridis'](np.linspace(*_ORDERED, count)))
