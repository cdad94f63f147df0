"""What the outside world does to a run: signals that stop it, and the time it takes."""

import signal
import time


class Stop:
    """Remembers the first SIGTERM or Ctrl-C; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._before = {}

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
