"""Builds a self-contained HTML page, with embedded pictures and without scripts."""

import base64
import dataclasses
import html
import importlib.resources
import re
import string
from collections.abc import Iterable, Sequence

from tarflow_jax import commands
from tarflow_jax.pictures import Picture

MAX_SVG = 600_000  # bytes of an SVG, above which a picture is a PNG


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page under a heading.

    Attributes:
      title: the heading.
      parts: HTML, as the other functions here return it.
    """

    title: str
    parts: Sequence[str]

    @property
    def anchor(self) -> str:
        """The id of the section, to which links refer after the #."""
        return ''.join(c if c.isalnum() else '-' for c in self.title.lower())


def page(title: str, lead: str, facts: str, sections: Iterable[Section]) -> str:
    """The whole page; `lead` and `title` are plain text."""
    sections = list(sections)
    files = importlib.resources.files('tarflow_jax.report')
    links = (f'<a href="#{s.anchor}">{html.escape(s.title)}</a>' for s in sections)
    bodies = [
        f'<section id="{s.anchor}">\n<h2>{html.escape(s.title)}</h2>\n{"".join(s.parts)}</section>'
        for s in sections
    ]
    return string.Template((files / 'page.html').read_text(encoding='utf-8')).substitute(
        title=html.escape(title),
        style=(files / 'page.css').read_text(encoding='utf-8'),
        lead=html.escape(lead),
        facts=facts,
        links='\n'.join(links),
        sections='\n'.join(bodies),
    )


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f'<p>{html.escape(text)}</p>\n'


def missing(words: str, command: str = '') -> str:
    """Says what the page could not show, and the command that it comes with."""
    code = f'<pre><code>{html.escape(command)}</code></pre>' if command else ''
    return f'<div class="missing"><p>{html.escape(words)}</p>{code}</div>\n'


def command(flags: Sequence[str], mode: str) -> str:
    """The command that creates what is missing; '' without flags that name a model."""
    return commands.command(*flags, f'--mode={mode}') if flags else ''


def facts(values: Iterable[tuple[str, str]]) -> str:
    """Headline figures, each with its description."""
    items = (
        f'<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>'
        for name, value in values
    )
    return f'<dl class="facts">{"".join(items)}</dl>\n'


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A table of plain texts; the first cell of a row is its heading."""

    def line(cells, first='th scope="row"', other='td'):
        tags = [first, *[other] * (len(cells) - 1)]
        texts = zip(tags, [_breakable(cells[0]), *map(html.escape, cells[1:])], strict=True)
        return ''.join(f'<{tag}>{text}</{tag.partition(" ")[0]}>' for tag, text in texts)

    top = f'<thead><tr>{line(head, "th", "th")}</tr></thead>' if head else ''
    body = ''.join(f'<tr>{line(row)}</tr>\n' for row in rows)
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>\n'


def details(summary: str, *parts: str) -> str:
    """Collapsible parts."""
    return f'<details><summary>{html.escape(summary)}</summary>{"".join(parts)}</details>\n'


def columns(*parts: str) -> str:
    """Parts side by side where there is room, else one below the other."""
    cells = ''.join(f'<div>{part}</div>\n' for part in parts)
    return f'<div class="columns">{cells}</div>\n'


def thumbnails(*parts: str) -> str:
    """Small figures, several in a row."""
    return f'<div class="thumbnails">{"".join(parts)}</div>\n'


def figure(picture: Picture, caption: str) -> str:
    """A picture with its caption, as SVG where that is small."""
    svg = picture.svg().encode()
    if len(svg) <= MAX_SVG:
        return _figure(_image(svg, 'svg+xml', caption), caption)
    return _figure(_image(picture.png(), 'png', caption), caption)


def png_figure(png: bytes, caption: str) -> str:
    """The bytes of a PNG with a caption."""
    return _figure(_image(png, 'png', caption), caption)


def animated_figure(png: bytes, still: bytes, caption: str) -> str:
    """An animated PNG, and in its place a still one for readers who want no motion."""
    uri = _data_uri(still, 'png')
    source = f'<source media="(prefers-reduced-motion: reduce)" srcset="{uri}">'
    return _figure(f'<picture>{source}{_image(png, "png", caption)}</picture>', caption)


def _breakable(text: str) -> str:
    return re.sub(r'([._])(?=\w)', r'\1<wbr>', html.escape(text))


def _figure(image: str, caption: str) -> str:
    return f'<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>\n'


def _image(content: bytes, kind: str, words: str) -> str:
    name = kind.partition('+')[0]
    return f'<img class="{name}" alt="{html.escape(words)}" src="{_data_uri(content, kind)}">'


def _data_uri(content: bytes, kind: str) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
