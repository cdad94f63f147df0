"""The pages of the manual, with their code."""

import re
import shlex

from runs import ROOT

PAGES = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md')), *sorted(ROOT.glob('*/README.md'))]
PROGRAMS = (r'tarflow', r'python -m (tarflow_jax|benchmarks)[\w.]*', r'launch/\w+\.sh')
_BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r'^ {4}(.*)$', re.MULTILINE)
_INLINE = re.compile(r'`([^`\n]+)`')
_COMMAND = re.compile(rf'(?:.*\s)?((?:{"|".join(PROGRAMS)}) .*)')


def python_blocks(page):
    """Each Python block of a page, with empty lines before it: errors have the page's numbers."""
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        if match[1] == 'python':
            yield '\n' * text.count('\n', 0, match.start(2)) + match[2]


def commands(page):
    """The words of each command of ours on a page, but for shortened ones."""
    text = page.read_text()
    blocks = [match[2] for match in _BLOCK.finditer(text) if match[1] != 'python']
    prose = _BLOCK.sub('', text)
    lines = '\n'.join([*blocks, *_INDENTED.findall(prose), *_INLINE.findall(prose)])
    for line in re.split(r'\n| && ', lines.replace('\\\n', ' ')):
        match = _COMMAND.fullmatch(line)
        if match and not re.search(r'\.\.\.|\[-', line):
            yield shlex.split(match[1])
