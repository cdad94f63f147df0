"""The manual is built without a warning, loads nothing from elsewhere, and has every key."""

import ast
import html.parser
import os
import re
import subprocess
import sys

import pytest
from runs import ROOT, TIMEOUT

from tarflow_jax.keys import KEYS

LOADED = {'script': 'src', 'img': 'src', 'iframe': 'src', 'link': 'href', 'source': 'src'}


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', folder]
    environment = os.environ | {'NO_MKDOCS_2_WARNING': '1'}  # of its theme, about another program
    built = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert built.returncode == 0, built.stderr
    return folder


class Loads(html.parser.HTMLParser):
    """The addresses that a page loads by itself."""

    def __init__(self, text):
        super().__init__()
        self.addresses = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if address := dict(attrs).get(LOADED.get(tag)):
            self.addresses.append(address)


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.glob('*.html'):
        addresses = Loads(page.read_text()).addresses
        assert len(addresses) > 3
        for address in addresses:
            assert '://' not in address, page.name
            assert page.name == '404.html' or (site / address.partition('?')[0]).is_file()
    for sheet in site.rglob('*.css'):
        assert 'url(http' not in sheet.read_text()
        assert '@import' not in sheet.read_text()


def test_every_key_has_its_row(site):
    page = (site / 'keys.html').read_text()
    assert [key for key in KEYS if f'<td><code>{key}</code></td>' not in page] == []


def test_every_formula_is_mathml(site):
    page = (site / 'method.html').read_text()
    assert page.count('<math') > 40
    assert 'arithmatex' not in page
    assert '\\(' not in page


def test_every_message_of_the_troubleshooting_is_one_of_the_program():
    words = '\n'.join(
        node.value
        for path in (ROOT / 'tarflow_jax').rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    page = (ROOT / 'docs' / 'troubleshooting.md').read_text()
    messages = re.findall(r'^\| `(.+?)` \|', page, re.MULTILINE)
    assert len(messages) > 5
    for message in messages:  # quoted names and the dots stand for what differs
        longest = max(re.split(r"'.*?'|\S*\.\.\.|\w+://", message), key=len).strip()
        assert len(longest) > 10
        assert longest in words, message
