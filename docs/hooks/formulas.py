"""Formulas as MathML, made while the manual is built: browsers show it without any script."""

import html
import re

from latex2mathml.converter import convert

# As pymdownx.arithmatex leaves them.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_LOG = re.compile('<mi>log</mi>(?!<mo stretchy="false">)')  # of a bracket it stands near enough


def on_page_content(content, **_):
    """Replaces the formulas of a page."""
    return _FORMULA.sub(_as_mathml, content)


def _as_mathml(match):
    tag, bracket, latex = match.groups()
    display = 'block' if bracket == '[' else 'inline'
    formula = convert(html.unescape(latex), display=display)
    formula = _LOG.sub(r'\g<0><mspace width="0.17em"/>', formula)
    return f'<{tag} class="formula">{formula}</{tag}>'
