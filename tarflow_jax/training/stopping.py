"""What the outside world does to a run: signals that stop it, and the time it takes."""

import functools
import signal
import time

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Stop:
    """Remembers the first SIGTERM or Ctrl-C; a second Ctrl-C interrupts at once.

    Of several processes each hands what it has received (`over`) to every step and hears of the
    step's report what any of them has (`hear`), so that all stop after the same step.

    Attributes:
      signal: what this process has received.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._heard: signal.Signals | None = None
        self._before = {}

    @property
    def agreed(self) -> signal.Signals | None:
        """The signal that stops the run, the same in every process."""
        return self.signal if jax.process_count() == 1 else self._heard

    def over(self, mesh: Mesh) -> jax.Array:
        """The number of the signal received, 0 for none: int32 [mesh.size], laid over `mesh`."""
        return _number_over(mesh, self.signal or 0)

    def hear(self, number) -> None:
        """Takes note of the largest number over all devices that a step reports."""
        if number and self._heard is None:
            self._heard = signal.Signals(int(number))

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


def sharding(mesh: Mesh) -> NamedSharding:
    """Of an array with one element for each device."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


@functools.lru_cache(maxsize=4)
def _number_over(mesh: Mesh, number: int) -> jax.Array:
    element = np.array([number], np.int32)
    return jax.make_array_from_callback((mesh.size,), sharding(mesh), lambda _: element)


class Pace:
    """Images a second while training, leaving out compilation and pauses."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._images = 0
        self._seconds = 0.0
        self._last: float | None = None

    def step(self):
        """Counts a step. The first one after a start or a pause only starts the clock."""
        now = time.perf_counter()
        if self._last is not None:
            self._images += self._batch_size
            self._seconds += now - self._last
        self._last = now

    def restart(self):
        """Leaves out the time since the last step."""
        self._last = None

    def images_per_second(self) -> float:
        """Of the steps since the last call; 0 if there were none to measure."""
        rate = self._images / self._seconds if self._seconds else 0.0
        self._images, self._seconds = 0, 0.0
        return rate
