"""What a person reads, word for word: the first screen, a first run, and common mistakes.

The texts are in tests/terminal/. Where they are meant to change, write them again and look at what
`git diff` says:

    WRITE_GOLDEN_TEXT=1 python -m pytest -n 0 tests/test_golden_text.py
"""

import os
import re
import subprocess
import sys

import pytest
from runs import ROOT, TIMEOUT

FOLDER = ROOT / 'tests' / 'terminal'
NO_CONFIG = '--config='  # what `runs` leaves out

# The digits, by a model that takes seconds.
SMALL = [
    *('--config.model.width=16', '--config.model.head_dim=8', '--config.model.num_blocks=2'),
    *('--config.model.layers_per_block=1', '--config.model.patch_size=4'),
    *('--config.optimizer.warmup_steps=5', '--config.train.num_epochs=1'),
]

MISTAKES = {
    'no experiment': [NO_CONFIG],
    'no workdir': ['--config=digits', '--workdir='],
    'an experiment that there is not': ['--config=digit'],
    'a misspelt flag': ['--config=digits', '--wordir=runs'],
    'a misspelt mode': ['--config=digits', '--mode=smaple'],
    'a word that is no flag': ['--config=digits', 'sample'],
    'a misspelt key': ['--config=digits', '--config.train.bath_size=32'],
    'a value of another kind': ['--config=digits', '--config.train.batch_size=many'],
    'a value out of its range': ['--config=digits', '--config.model.patch_size=3'],
    'a data set that there is not': ['--config=digits', '--config.data.name=digit'],
    'samples where nothing was trained': [NO_CONFIG, '--mode=sample'],
    'a checkpoint that there is not': ['--config=digits', '--checkpoint=model.pth'],
}


def check(name, text):
    path = FOLDER / f'{name}.txt'
    if os.environ.get('WRITE_GOLDEN_TEXT'):
        path.write_text(text)
    assert text == path.read_text()


def masked(text, *folders):
    """The text without what differs from run to run: folders, times, rates and losses."""
    for name, folder in zip(('RUNS', 'DATA'), folders, strict=False):
        text = text.replace(str(folder), name)
    text = text.replace(str(ROOT), 'CLONE')
    text = re.sub(r'-?\d+\.\d{4}\b', '0.0000', text)
    text = re.sub(r'\b(\d+[smhd]|\d+m \d\ds)\b', 'TIME', text)
    text = re.sub(r'  [\d.,]+ images/s', '', text)
    text = re.sub(r'(samples|images of \w+) +\d+/\d+  .*\n', '', text)  # where it takes long
    return re.sub(r'(step +\d+/\d+  .*\n)+', 'step N/24  ...\n', text)


def ended(*arguments):
    command = [sys.executable, '-m', 'tarflow_jax', *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)


def test_the_first_screen():
    helped = ended('--help')
    assert (helped.returncode, helped.stderr) == (0, '')
    lines = helped.stdout.splitlines()
    assert len(lines) <= 35
    assert max(map(len, lines)) <= 80
    check('help', helped.stdout)
    nothing_given = ended()
    assert (nothing_given.returncode, nothing_given.stdout) == (2, helped.stdout)


@pytest.mark.parametrize('flag', ['--help', '--version'])
def test_what_is_quickly_said_imports_nothing_that_takes_long(flag):
    script = (
        f'import sys; sys.argv = ["tarflow", "{flag}"]; from tarflow_jax.main import main\n'
        'try: main()\nexcept SystemExit: print({"jax", "numpy", "flax"} & {*sys.modules})'
    )
    out = subprocess.check_output([sys.executable, '-c', script], cwd=ROOT, text=True)
    assert out.endswith('set()\n')


def test_a_first_run(runs, tmp_path):
    workdir = tmp_path / 'digits'
    commands = [
        ['--config=digits', *SMALL],
        [NO_CONFIG, '--mode=sample', '--config.sample.num_samples=10'],
        [NO_CONFIG, '--mode=evaluate', '--config.evaluate.metrics=bits_per_dim,accuracy'],
        [NO_CONFIG, '--mode=info'],
    ]
    texts = []
    for flags in commands:
        result = runs.run(workdir, *flags)
        assert result.err == ''
        shown = ' '.join(flag for flag in flags if flag not in (*SMALL, NO_CONFIG))
        texts.append(f'$ tarflow {shown} --workdir=RUNS/digits\n{result.out}')
    text = masked('\n'.join(texts), tmp_path, runs.data_dir)
    check('first_run', re.sub(r'\d{4}-\d\d-\d\dT[\d:+]+', 'DATE', text))


def test_common_mistakes(runs, tmp_path):
    started = {words: runs.start(tmp_path / 'new', *flags) for words, flags in MISTAKES.items()}
    texts = []
    for words, run in started.items():
        result = run.wait()
        assert (result.status, result.out) == (2, ''), words
        flags = ' '.join(flag for flag in MISTAKES[words] if flag != NO_CONFIG)
        texts.append(f'{words}: {flags}\n{result.err}')
    check('mistakes', masked('\n'.join(texts), tmp_path, runs.data_dir))
