"""Builds the commands that the program suggests, in the form in which it was itself started."""

import shlex
import sys
from pathlib import Path

_NAMES = {
    'tarflow': ('tarflow',),
    '__main__.py': ('python', '-m', 'tarflow_jax'),
}


def command(*flags: str) -> str:
    """Returns a line for a shell, such as `tarflow --workdir=runs/digits --mode=sample`."""
    return shlex.join([*_program(), *flags])


def next_commands(*commands: str) -> str:
    """Returns lines that suggest the next commands."""
    return '\n'.join(['Next:', *(f'  {line}' for line in commands)])


def _program() -> tuple[str, ...]:
    called = Path(sys.argv[0]).name if sys.argv else ''
    return _NAMES.get(called, ('python', '-m', 'tarflow_jax.main'))
