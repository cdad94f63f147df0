"""A profile of a few training steps, for TensorBoard and xprof."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import jax

WARM_UP = 10  # steps before those profiled: the first ones compile


def profiled(steps: Iterable[int], folder: Path, num_steps: int) -> Iterator[int]:
    """Yields the steps, and profiles `num_steps` of them, from the eleventh on.

    A step runs on the device while Python is at the next one, so the profile ends one step late.

    Args:
      steps: the steps of a training.
      folder: the folder that gets `plugins/profile/<date>/`, as TensorBoard's plugin expects it.
      num_steps: how many steps to profile; 0 for none.
    """
    is_running = False
    try:
        for count, step in enumerate(steps):
            if num_steps and count == WARM_UP:
                jax.profiler.start_trace(folder)
                is_running = True
            if is_running and count > WARM_UP + num_steps:
                jax.profiler.stop_trace()
                is_running = False
            yield step
    finally:
        if is_running:
            jax.profiler.stop_trace()
