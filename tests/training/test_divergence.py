"""A training that diverges keeps its sound checkpoints, and goes back to them by itself.

A learning rate of 0.1 lets the tiny flow diverge as models do: its parameters become enormous, but
stay finite at first.
"""

import signal

import jax
import numpy as np
import pytest
from runs import arrays_in, metrics_in, steps_in

from tarflow_jax.training import health

FLAGS = (
    '--config.optimizer.peak_learning_rate=0.1',
    '--config.train.checkpoint_every=4',
    '--config.train.sample_every=1000',
    '--config.train.log_every=1',
)
LOWER = (*FLAGS, '--config.train.restart_factor=0.1')
LAST = 24


@pytest.fixture(scope='module')
def healed(runs, tmp_path_factory):
    """The workdir of a run that went back by itself, and what it printed; only to be read."""
    workdir = tmp_path_factory.mktemp('healed')
    return workdir, runs.run(workdir, *LOWER)


def test_a_run_goes_back_by_itself_and_ends_trained(runs, healed):
    workdir, result = healed
    (line,) = [line for line in result.out.splitlines() if 'the training has diverged' in line]
    assert line.endswith(
        'Back to the checkpoint of step 4, with another order of the data (1 of at most 3 times)'
    )
    metrics = metrics_in(workdir)
    assert [values['step'] for values in metrics if 'train/loss' in values] == [*range(1, LAST + 1)]
    assert metrics[-1]['test/nats_per_dim'] < 1
    first, last = metrics[0], metrics[-2]
    assert 'train/restarts' not in first
    assert last['train/restarts'] == 1
    assert last['train/learning_rate'] < 0.01
    assert arrays_in(runs, workdir, LAST)["['health']['restarts']"] == 1


def test_a_run_that_is_stopped_after_it_went_back_ends_as_if_it_had_not(runs, healed, tmp_path):
    """The record is opened once more at every step; after how many it diverges, rounding says."""
    result = runs.run(
        tmp_path, *LOWER, status=143, at=('open', 'metrics.jsonl', 35, signal.SIGTERM)
    )
    assert 'Back to the checkpoint of step 4' in result.out
    assert 4 < steps_in(tmp_path)[-1] < LAST
    runs.run(tmp_path, *LOWER)
    assert metrics_in(tmp_path) == metrics_in(healed[0])
    arrays, expected = (arrays_in(runs, folder, LAST) for folder in (tmp_path, healed[0]))
    for name, array in arrays.items():
        assert array.tobytes() == expected[name].tobytes(), name


def test_what_a_run_advises_that_gives_up_works(runs, tmp_path):
    flags = (*FLAGS, '--config.train.max_restarts=2')
    result = runs.run(tmp_path, *flags, status=1)
    assert result.err.startswith('error: step ')
    assert 'Back to the checkpoint of step 4, with another order of the data (1 of' in result.out
    assert 'Back to the beginning, with another order of the data (2 of' in result.out
    assert 'after 2 restarts (train.max_restarts)' in result.err
    assert f'The last sound checkpoint is {tmp_path}/checkpoints/4.' in result.err
    assert 'Lower optimizer.peak_learning_rate, which is 0.1, to a third or less' in result.err
    assert result.err.endswith('and run the same command: it resumes from there.\n')
    assert steps_in(tmp_path) == [4]
    names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
    assert names - {'4.abandoned'} == {'4'}

    result = runs.run(tmp_path, *flags, '--config.optimizer.peak_learning_rate=0.01')
    assert 'resuming from the checkpoint of step 4' in result.out
    assert 'diverged' not in result.out
    assert metrics_in(tmp_path)[-1]['test/nats_per_dim'] < 1


def follow(*losses):
    """The healths after steps of some losses, and whether each of them was sound."""
    state, states, sound = health.init(), [], []
    for step, loss in enumerate(losses):
        finite = np.isfinite(loss)
        before = state
        state = jax.jit(health.update)(before, loss, finite, step)
        sound.append(bool(health.is_sound(state, loss, finite)))
        states.append(state)
    return states, sound


def test_one_loss_is_not_a_divergence():
    states, sound = follow(*[-2.0] * 30, 1e30, np.inf, *[-2.0] * 9)
    assert sound == [*[True] * 30, False, False, *[True] * 9]
    assert not any(health.has_diverged(state) for state in states)


def test_many_losses_far_above_the_best_are_a_divergence():
    states, sound = follow(*[-2.0] * 30, *[-0.9] * 60)
    assert sound == [True] * 30 + [False] * 60
    assert not health.has_diverged(states[40])
    assert health.has_diverged(states[-1])


def test_steps_before_the_first_finite_loss_say_nothing():
    states, sound = follow(np.nan, np.inf, 1.3, 1.2)
    assert sound == [False, False, True, True]
    assert 1.2 < states[-1]['recent'] < 1.3
