"""The table of modules in docs/code.md is complete, and imports lead downwards only."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file.relative_to(ROOT) for file in ROOT.glob('tarflow_jax/*/**/*.py'))
FILES += sorted(file.relative_to(ROOT) for file in ROOT.glob('tarflow_jax/[a-z]*.py'))


def table():
    """The rows of the table: the rooms of each, and the words about them."""
    _, _, section = (ROOT / 'docs' / 'code.md').read_text().partition('## The modules')
    rows = re.findall(r'^\| (`.*?) \| (.*) \|$', section.partition('\n## ')[0], re.MULTILINE)
    return [(re.findall(r'`(\w+)/?`', rooms), words) for rooms, words in rows]


ROW = {room: number for number, (rooms, _) in enumerate(table()) for room in rooms}


def room_of(file):
    return file.with_suffix('').parts[1]


def imported_rooms(file):
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == 'tarflow_jax':
            yield from (alias.name for alias in node.names)
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ''] if isinstance(node, ast.ImportFrom) else []
        yield from (name.split('.')[1] for name in names if name.startswith('tarflow_jax.'))


def test_the_table_names_every_room_once():
    rooms = [room for row, _ in table() for room in row]
    assert sorted(rooms) == sorted({room_of(file) for file in FILES})


@pytest.mark.parametrize('room', sorted({room_of(file) for file in FILES if len(file.parts) > 2}))
def test_the_table_names_every_module_of_a_room(room):
    (words,) = (words for rooms, words in table() if room in rooms)
    modules = {file.with_suffix('').parts[2] for file in FILES if room_of(file) == room}
    named = set(re.findall(r'`(\w+)/?`', words))
    assert modules - {'__init__'} <= named


@pytest.mark.parametrize('file', FILES, ids=str)
def test_imports_lead_downwards(file):
    above = {room for room in imported_rooms(file) if ROW[room] < ROW[room_of(file)]}
    assert not above


def test_no_rooms_import_each_other_in_a_circle():
    graph = {room: set() for room in ROW}
    for file in FILES:
        graph[room_of(file)] |= {*imported_rooms(file)} - {room_of(file)}
    graphlib.TopologicalSorter(graph).prepare()
