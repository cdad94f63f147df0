"""Fractions of a whole as bars."""

from collections.abc import Sequence

from tarflow_jax.pictures.picture import Picture, house_style, panels


@house_style
def shares(
    names: Sequence[str], values: Sequence[float], notes: Sequence[str], title: str, of: str
) -> Picture:
    """Bars from 0 to 1, from the first at the top to the last, with a note after each.

    `of` says what the bars are fractions of.
    """
    picture, (panel,) = panels(0.7 + 0.27 * len(names))
    bars = panel.barh(names, values, height=0.72)
    panel.bar_label(bars, [f' {note}' for note in notes], fontsize=9)
    panel.set(title=title, xlabel=of, xlim=(0, 1.25))
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ['0', '25%', '50%', '75%', '100%'])
    panel.grid(visible=False)
    panel.invert_yaxis()
    return picture
