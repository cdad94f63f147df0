"""The pace leaves out what is not training."""

from tarflow_jax.training import throughput as paces
from tarflow_jax.training.throughput import Throughput


def test_the_pace_leaves_out_the_start_and_pauses(monkeypatch):
    now = 0.0
    monkeypatch.setattr(paces.time, 'perf_counter', lambda: now)
    throughput = Throughput(batch_size=10)
    assert throughput.images_per_second() is None
    for seconds in 100, 2, 2:  # the first step compiles
        now += seconds
        throughput.step()
    assert throughput.images_per_second() == 5
    throughput.restart()
    for seconds in 100, 5:  # a pause before the first
        now += seconds
        throughput.step()
    assert throughput.images_per_second() == 2
    assert throughput.images_per_second() is None
