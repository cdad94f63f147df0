"""Runs of many processes that fail somewhere: all end soon, nothing is lost. Not in the suite.

    TARFLOW_JAX_PROCESSES=8 python -m pytest -n 0 -s tests/failures_of_many.py

Each case prints the statuses of all processes, and the seconds it took. There are four processes
unless TARFLOW_JAX_PROCESSES says otherwise.
"""

import os
import signal
import time

import pytest
from runs import assert_same_run, steps_in

NUMBER = int(os.environ.get('TARFLOW_JAX_PROCESSES', 4))
STEP = ('call', 'training/loop.py read', 6)
SCORES = ('call', 'likelihood/scores.py score_split', 1)
SAVE = ('call', 'training/checkpoint.py save', 2)
KILLED = 'process {} exited without a message: it was killed'
FULL = OSError(28, 'No space left on device')
ODD = ArithmeticError('an odd number')

# What happens, to which processes; the status of all, and the words.
FAILURES = {
    'a save': ((*SAVE, FULL), [2], 1, 'No space left on device'),
    'a config of its own': (None, [2], 2, "there is no config key 'no'"),
    'killed in training': ((*STEP, signal.SIGKILL), [2], 1, KILLED),
    'the main one killed': ((*STEP, signal.SIGKILL), [0], 1, KILLED),
    'two at once': ((*STEP, FULL), [1, 3], 1, 'No space left on device'),
    'the start': (('call', 'training/loop.py __init__', 1, ODD), [3], 1, str(ODD)),
    'the start of the main one': (('call', 'training/loop.py __init__', 1, ODD), [0], 1, str(ODD)),
    'a config of the main one': (None, [0], 2, "there is no config key 'no'"),
    'training': ((*STEP, ODD), [2], 1, str(ODD)),
    'training of the main one': ((*STEP, ODD), [0], 1, str(ODD)),
    'scores': ((*SCORES, ODD), [1], 1, str(ODD)),
    'scores of the main one': ((*SCORES, ODD), [0], 1, str(ODD)),
    'a save of the main one': ((*SAVE, FULL), [0], 1, 'No space left on device'),
    'killed at the start': (
        *(('call', 'training/loop.py __init__', 1, signal.SIGKILL), [1], 1, KILLED),
    ),
    'killed in scores': ((*SCORES, signal.SIGKILL), [3], 1, KILLED),
    'killed in a save': ((*SAVE, signal.SIGKILL), [2], 1, KILLED),
    'the main one killed in scores': ((*SCORES, signal.SIGKILL), [0], 1, KILLED),
    'the main one killed in a save': ((*SAVE, signal.SIGKILL), [0], 1, KILLED),
    'two killed': ((*STEP, signal.SIGKILL), [0, 2], 1, KILLED),
    'all but one': ((*STEP, ODD), [0, 1, 2], 1, str(ODD)),
}


@pytest.mark.parametrize('case', FAILURES)
def test_all_end_as_the_one_that_failed(runs, tmp_path, case):
    trap, failing, status, words = FAILURES[case]
    if trap:
        how = {'at': dict.fromkeys(failing, trap)}
    else:
        how = {'own': {i: ['--config.no=1'] for i in failing}}
    killed = words is KILLED
    start = time.monotonic()
    results = [run.wait() for run in runs.start_many(NUMBER, tmp_path, **how)]
    print(f'{case}: {[result.status for result in results]} in {time.monotonic() - start:.1f} s')
    causes = [words.format(i) if killed else words for i in failing]
    # The first of several that are to be killed may end the others before they are.
    assert not killed or any(results[i].status == -signal.SIGKILL for i in failing)
    for process, result in enumerate(results):
        if process in failing and killed and result.status == -signal.SIGKILL:
            continue
        assert result.status == status, result
        line = result.err.splitlines()[-1]
        assert line.startswith('error: '), result.err
        assert any(cause in line for cause in causes), result.err
        if process not in failing:
            assert len(result.err.splitlines()) == 1, result.err
            if not killed:
                assert any(f'error: process {i} failed: ' in line for i in failing)
    if trap and trap[:3] in (STEP, SAVE):
        assert 4 in steps_in(tmp_path)


def test_a_slow_one_is_waited_for_and_nothing_is_lost(runs, tmp_path):
    whole, workdir = tmp_path / 'whole', tmp_path / 'run'
    runs.run_many(NUMBER, whole)
    running = runs.start_many(NUMBER, workdir, at={2: (*STEP, signal.SIGSTOP)})
    while not steps_in(workdir):
        time.sleep(0.05)
    time.sleep(30)
    running[2].signal(signal.SIGCONT)
    assert [run.wait().status for run in running] == [0] * NUMBER
    assert_same_run(runs, workdir, whole)

    workdir = tmp_path / 'again'
    runs.run_many(NUMBER, workdir, status=143, at={3: (*STEP, signal.SIGTERM)})
    for victim in 0, 2:
        running = runs.start_many(NUMBER, workdir, at={victim: (*STEP, signal.SIGKILL)})
        assert {run.wait().status for run in running} == {1, -signal.SIGKILL}
    runs.run_many(NUMBER, workdir)
    assert_same_run(runs, workdir, whole)


@pytest.mark.parametrize('mode', ['sample', 'evaluate'])
def test_failures_of_other_modes(runs, whole, tmp_path, mode):
    flags = (f'--checkpoint={whole[0]}', f'--mode={mode}')
    for victim in 0, 2:
        trap = ('call', 'sampling/batches.py redraw', 1, signal.SIGKILL)
        if mode == 'evaluate':
            trap = (*SCORES, signal.SIGKILL)
        running = runs.start_many(NUMBER, tmp_path, *flags, at={victim: trap})
        results = [run.wait() for run in running]
        assert results.pop(victim).status == -signal.SIGKILL
        for result in results:
            assert result.status == 1
            assert result.err.startswith(f'error: {KILLED.format(victim)}')
