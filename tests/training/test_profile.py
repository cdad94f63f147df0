"""A profile of a few steps, whose operations bear the names of the architecture."""

import gzip

from tarflow_jax.training.profile import WARM_UP, profiled


def test_a_profile_of_a_run(runs, tmp_path):
    runs.run(tmp_path, '--config.train.profile_steps=2', '--config.train.checkpoint_every=1000')
    (trace,) = (tmp_path / 'tensorboard').glob('plugins/profile/*/*.trace.json.gz')
    assert b'step_and_signal' in gzip.decompress(trace.read_bytes())


def test_only_steps_after_the_first_are_profiled(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr('jax.profiler.start_trace', lambda folder: calls.append('start'))
    monkeypatch.setattr('jax.profiler.stop_trace', lambda: calls.append('stop'))

    for step in profiled(range(100, 130), tmp_path, 3):
        calls.append(step)
    first = 100 + WARM_UP
    assert calls[WARM_UP : WARM_UP + 6] == ['start', *range(first, first + 4), 'stop']

    calls.clear()
    steps = profiled(range(100, 130), tmp_path, 3)
    for _ in range(WARM_UP + 2):
        next(steps)
    steps.close()  # as a signal does
    assert calls == ['start', 'stop']

    calls.clear()
    assert list(profiled(range(5), tmp_path, 0)) == list(range(5))
    assert calls == []
