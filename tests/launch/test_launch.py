"""What all scripts of launch/ have in common."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'
ALL = sorted(LAUNCH.glob('*.sh'))
COMMANDS = [script for script in ALL if script.name != 'common.sh']
ids = dict(ids=lambda script: script.name)


def run(command, **how):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **how)


def test_shellcheck_finds_nothing():
    result = run([pathlib.Path(sys.executable).parent / 'shellcheck', *ALL])
    assert (result.stdout, result.stderr, result.returncode) == ('', '', 0)


@pytest.mark.parametrize('script', COMMANDS, **ids)
def test_prints_its_manual(script, tmp_path):
    for option, status in ['-h', 0], ['--help', 0], [None, 2]:
        result = run([script, option] if option else [script], cwd=tmp_path)
        assert result.returncode == status
        assert f'launch/{script.name}' in result.stdout
        assert result.stderr == ''
        assert '#' not in result.stdout
        assert 'SBATCH -' not in result.stdout
        assert 'set -euo' not in result.stdout


@pytest.mark.parametrize('script', COMMANDS, **ids)
def test_is_strict_and_can_be_started(script):
    text = script.read_text()
    assert text.startswith('#!/usr/bin/env bash\n# ')
    assert '\nset -euo pipefail\n' in text
    assert os.access(script, os.X_OK)
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize('script', ALL, **ids)
def test_needs_no_newer_bash_than_macos_has(script):
    newer = (
        r'\$\{\w+(\[@\])?@[A-Z]\}|\$\{\w+[,^]|declare -[Agn]|local -[An]|mapfile|readarray|wait -n'
    )
    assert not re.search(newer, script.read_text())


def test_quoting_survives_a_shell(tmp_path):
    words = [
        '',
        ' ',
        "it's",
        '"',
        '$HOME',
        '`x`',
        '\\',
        'a,b',
        '*',
        '~',
        '!x',
        'é',
        'a\nb',
        '-n',
        '&',
    ]
    script = f'source {LAUNCH}/common.sh; eval "printf \'%s\\0\' $(quoted "$@")"'
    result = run(['bash', '-c', script, 'bash', *words], cwd=tmp_path)
    assert result.stdout.split('\0')[:-1] == words
