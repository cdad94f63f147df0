"""The pace leaves out what is not training."""

from tarflow_jax.training import pace as paces
from tarflow_jax.training.pace import Pace


def test_the_pace_leaves_out_the_start_and_pauses(monkeypatch):
    now = 0.0
    monkeypatch.setattr(paces.time, 'perf_counter', lambda: now)
    pace = Pace(batch_size=10)
    assert pace.images_per_second() == 0
    for seconds in 100, 2, 2:  # the first step compiles
        now += seconds
        pace.step()
    assert pace.images_per_second() == 5
    pace.restart()
    for seconds in 100, 5:  # a pause before the first
        now += seconds
        pace.step()
    assert pace.images_per_second() == 2
    assert pace.images_per_second() == 0
