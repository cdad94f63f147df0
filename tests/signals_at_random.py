"""SIGTERM at random moments of training, scores, grids and evaluations. Not in the suite: minutes.

    python -m pytest -n 0 -s tests/signals_at_random.py

Each case prints when the signal came, how long the run took to leave, and its status. MOMENTS sets
how many there are of each kind (20), SEED which (0).
"""

import contextlib
import json
import os
import random
import signal
import time

import pytest
from runs import arrays_in, metrics_in, steps_in

MOMENTS = int(os.environ.get('MOMENTS', 20))
SEED = int(os.environ.get('SEED', 0))
GRACE_SECONDS = 30
NEVER = 10**6


def every(part, steps):
    return f'--config.train.{part}_every={steps}'


# What most of the time of a run goes into.
KINDS = {
    'training': [
        *('--config.train.num_epochs=6', every('evaluate', NEVER), every('sample', NEVER)),
        every('checkpoint', 50),
    ],
    'scores': [every('evaluate', 4), every('sample', NEVER), '--config.train.evaluate_draws=20'],
    'grids': [every('sample', 4), every('evaluate', NEVER), '--config.sample.num_samples=100'],
    'evaluation': [
        *('--mode=evaluate', '--config.evaluate.num_samples=3000'),
        *('--config.evaluate.metrics=bits_per_dim,haar_frechet,haar_recall',),
        '--config.evaluate.num_draws=4',
    ],
}


@pytest.fixture(scope='module', params=KINDS)
def undisturbed(request, runs, whole, tmp_path_factory):
    """The kind of a run, its flags, what it comes to, and the seconds that it takes."""
    flags = KINDS[request.param]
    if request.param == 'evaluation':
        flags = [*flags, f'--checkpoint={whole[0]}']
    for name in 'first', 'undisturbed':  # the first one compiles
        workdir = tmp_path_factory.mktemp(name)
        start = time.monotonic()
        runs.run(workdir, *flags)
        seconds = time.monotonic() - start
    return request.param, flags, outcome_of(runs, workdir), seconds


def outcome_of(runs, workdir):
    """All that a run of any kind comes to, but for what is a matter of time."""
    files = {path.name: path.read_bytes() for path in (workdir / 'samples').glob('*.*')}
    if (workdir / 'evaluation.json').exists():
        evaluation = json.loads((workdir / 'evaluation.json').read_text())
        del evaluation['date']
        return files, evaluation
    last = steps_in(workdir)[-1]
    arrays = {name: array.tobytes() for name, array in arrays_in(runs, workdir, last).items()}
    return files, metrics_in(workdir), last, arrays


@pytest.mark.parametrize('moment', range(MOMENTS))
def test_a_signal_at_a_random_moment(runs, undisturbed, tmp_path, moment):
    kind, flags, expected, seconds = undisturbed
    running = runs.start(tmp_path, *flags)
    # The forked process takes a moment to become one of the program.
    delay = random.Random(f'{SEED} {kind} {moment}').uniform(0.2, seconds)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):  # a busy machine may be idle by now
        running.signal(signal.SIGTERM)
    start = time.monotonic()
    stopped = running.wait()
    left = time.monotonic() - start
    print(f'\n{kind:10} {delay:6.2f} of {seconds:.2f} s: {stopped.status} after {left:.2f} s')
    assert stopped.status in (143, 0)  # 0: all was done
    assert left < GRACE_SECONDS
    assert 'Traceback' not in stopped.err
    assert not list(tmp_path.rglob('*.unfinished'))
    if stopped.status:
        runs.run(tmp_path, *flags)
    assert outcome_of(runs, tmp_path) == expected
