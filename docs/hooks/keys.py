"""The page of a config's keys, made of configs/base.py and tarflow_jax/keys.py at every build."""

import ast
import functools
import re
from pathlib import Path

from tarflow_jax import configfile, keys, values
from tarflow_jax.sampling.labels import Labels

ROOT = Path(__file__).parents[2]
_LINE = re.compile(r' +config\.([\w.]+) = (.*?)(?:  # (.*))?')
_HEADER = '| key | by default | it may be | what it is |\n|---|---|---|---|\n'


def on_page_markdown(markdown, page, **_):
    """Puts the tables where the page keys.md has their marks."""
    if page.file.src_uri != 'keys.md':
        return markdown
    return markdown.replace('<!-- KEYS -->', tables()).replace(
        '<!-- EXPERIMENTS -->', experiments()
    )


def tables():
    """A table for each section of a config, the key without one first."""
    sections = {}
    for key, (default, comment) in explained().items():
        row = f'| `{key}` | `{default}` | {allowed(keys.KEYS[key])} | {comment} |\n'
        sections.setdefault(key.rpartition('.')[0], []).append(row)
    return '\n'.join(
        (f'### {section}\n\n' if section else '') + _HEADER + ''.join(rows)
        for section, rows in sections.items()
    )


def explained():
    """Each key with its default, as base.py writes it, and its comment."""
    lines = (ROOT / 'configs' / 'base.py').read_text().splitlines()
    matches = filter(None, map(_LINE.fullmatch, lines))
    found = {key: (value, comment or '') for key, value, comment in (m.groups() for m in matches)}
    found = {key: words for key, words in found.items() if words[0] != 'ConfigDict()'}
    if found.keys() != keys.KEYS.keys():
        odd = ', '.join(sorted(found.keys() ^ keys.KEYS.keys()))
        raise ValueError(f'configs/base.py and tarflow_jax/keys.py differ, or lines do: {odd}.')
    return found


def experiments():
    """The experiments, each with the first line of its file."""
    files = [ROOT / 'configs' / f'{name}.py' for name in configfile.names()]
    first = [ast.get_docstring(ast.parse(file.read_text())).split('\n')[0] for file in files]
    rows = [f'| `{file.stem}` | {line} |\n' for file, line in zip(files, first, strict=True)]
    return '| name | |\n|---|---|\n' + ''.join(rows)


@functools.singledispatch
def allowed(kind):
    """The values that a key of this kind may have, in words."""
    raise TypeError(f'docs/hooks/keys.py has no words for {type(kind).__name__}.')


@allowed.register
def _(kind: values.Integer):
    low, high = _number(kind.low), _number(kind.high)
    return f'whole, from {low}' if kind.high >= values.INT32_MAX else f'whole, {low} to {high}'


@allowed.register
def _(kind: values.Float):
    low = f'above {kind.low:g}' if kind.exclude_low else f'from {kind.low:g}'
    high = f'below {kind.high:g}' if kind.exclude_high else f'to {kind.high:g}'
    return f'a number {low}, {high}'


@allowed.register
def _(kind: values.Choice):
    return ', '.join(f'`{name}`' for name in kind.names)


@allowed.register
def _(kind: values.Boolean):
    return '`True`, `False`'


@allowed.register
def _(kind: values.String):
    return 'a text'


@allowed.register
def _(kind: values.PathValue):
    return 'a path'


@allowed.register
def _(kind: values.Strings):
    return 'texts'


@allowed.register
def _(kind: values.ImageShape):
    return 'three whole numbers'


@allowed.register
def _(kind: Labels):
    return '`even`, `uniform`, or classes'


def _number(value):
    return f'{value:,}'
