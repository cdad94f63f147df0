"""The examples of the README and the manual run, and their commands have no mistakes."""

import multiprocessing
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
from absl.testing import flagsaver
from pages import PAGES, commands, python_blocks
from runs import ROOT, TIMEOUT

from tarflow_jax import command_line, keys
from tarflow_jax.data import prepare
from tarflow_jax.errors import InputError

WITH_EXAMPLES = [page for page in PAGES if any(python_blocks(page))]
PLACEHOLDERS = {'NAME': 'digits', 'FILE': 'digits', 'DIR': 'runs/digits', 'N': '64'}
PLACEHOLDERS |= {'mnist': 'digits'}  # which would have to be downloaded
ANSWERED = {'--help', '--helpfull', '--version'}


@pytest.fixture
def clone(whole, tmp_path, monkeypatch):
    """The working directory of a reader, with a trained runs/digits."""
    workdir, _ = whole
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'runs' / 'digits').symlink_to(workdir)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('page', WITH_EXAMPLES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_one_after_the_other(page, clone, runs):
    runs.run_script('\n'.join(python_blocks(page)), page, clone)


def test_every_command_can_be_given(clone, whole):
    of_pages = sorted({tuple(command) for page in PAGES for command in commands(page)})
    assert len(of_pages) > 40
    for name in set(re.findall(r'--workdir=(runs/\w+)', str(of_pages))) - {'runs/digits'}:
        (clone / name).symlink_to(whole[0])
    # In a process of its own, as flags are of the whole process.
    with ProcessPoolExecutor(1, multiprocessing.get_context('forkserver')) as pool:
        assert pool.submit(mistakes_in, of_pages, clone).result(TIMEOUT) == {}


def mistakes_in(of_pages, folder):
    os.chdir(folder)
    mistakes = {}
    for command in of_pages:
        with flagsaver.flagsaver():
            if words := mistake_in(command):
                mistakes[' '.join(command)] = words
    return mistakes


def mistake_in(command):
    """What is wrong with a command, by the program's own words; '' if nothing is."""
    program, flags = program_and_flags(command)
    if not (ROOT / program).is_file():
        return f'there is no {program}'
    if program.startswith('benchmarks') or ANSWERED.intersection(flags):
        return ''
    try:
        prepare._parse(flags) if 'prepare' in program else parse(flags)
    except InputError as error:
        return str(error)
    return ''


def parse(flags):
    sys.argv = ['tarflow', *flags]
    command_line.parse(sys.argv)
    if command_line.CONFIG.value:
        keys.check(command_line.CONFIG.value)


def program_and_flags(command):
    """The file of a program, and its flags; those that a launch script hands on."""
    flags = [
        re.sub(rf'\b({"|".join(PLACEHOLDERS)})\b', lambda match: PLACEHOLDERS[match[0]], word)
        for word in command
    ]
    if command[0] == 'tarflow':
        return 'tarflow_jax/main.py', flags[1:]
    if command[0] == 'python':
        return f'{command[2].replace(".", "/")}.py', flags[3:]
    of_program = [flag for flag in flags if re.match('--(config|workdir)', flag)]
    return command[0], of_program or ['--help']
