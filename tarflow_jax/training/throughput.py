"""The speed of training."""

import time


class Throughput:
    """Images per second while training, leaving out compilation and pauses."""

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

    def images_per_second(self) -> float | None:
        """The speed of the steps since the last call; None if there were none to measure."""
        rate = self._images / self._seconds if self._seconds else None
        self._images, self._seconds = 0, 0.0
        return rate
