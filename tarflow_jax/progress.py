"""Shows the progress of long operations: a bar on a terminal, lines anywhere else."""

import contextlib
import io
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tarflow_jax.quantities import format_duration

REPORT_DELAY = 10.0  # seconds of work without a progress report
_GAP = 2  # spaces between the parts of a line
_SHORTEST_BAR = 6
_OPTIONAL_PARTS = ('elapsed', 'images_per_second', 'skipped_steps', 'left')  # on a narrow terminal


class Progress:
    """Shows how far a run is. A context manager, outside of which nothing is shown.

    On a terminal, a bar stays on the last line, and what is printed or logged meanwhile appears
    above it; the terminal is as it was after an exception or Ctrl-C too. Elsewhere, and with
    TERM=dumb, plain lines come every few seconds, later every minute. NO_COLOR is honoured.

        with Progress(total_steps=2000) as progress:
            progress.update(100, {'loss': 0.5, 'images_per_second': 12345.0})
            progress.print_line('test 0.1230 nats/dim')

    Args:
      total_steps: the step at which the run is over.
      first_step: the step from which a run resumes.
      noun: what is counted.
      delay: seconds before the first line. Work that ends sooner prints no line. If it is above
        0, the bar is removed at the end.
      stream: the stream to write to; by default what sys.stdout is now.
      clock: a monotonic clock, in seconds.
      enabled: False shows nothing, for all processes but the main one.
    """

    def __init__(
        self,
        total_steps: int,
        first_step: int = 0,
        *,
        noun: str = 'step',
        delay: float = 0.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        enabled: bool = True,
    ) -> None:
        stream = (stream or sys.stdout) if enabled else io.StringIO()  # which nobody reads
        self._status = _Status(total_steps, first_step, clock, noun, delay)
        display = _BarDisplay if _is_terminal(stream) else _LineDisplay
        self._display: _BarDisplay | _LineDisplay = display(self._status, stream)

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._display.stop()

    def update(self, step: int, values: Mapping[str, Any] | None = None) -> None:
        """Moves on to `step`, and shows the numbers it knows.

        They are loss, images_per_second, and skipped_steps where it is not 0; a name may have a
        group before it (train/loss), and other names are passed over, so the numbers can be those
        of `MetricsWriter.scalars`. What is not given stays as it was.
        """
        self._status.update(step, values or {})
        self._display.updated()

    def before_batch(self, size: int, check: Callable[[], object]) -> Callable[[], None]:
        """Returns a function to call before each batch of `size` things; it calls `check`, too."""
        first = self._status.step
        numbers = itertools.count(first, size)

        def call() -> None:
            check()
            if (number := next(numbers)) > first:  # the first batch may wait for a compiler
                self.update(min(number, self._status.total_steps))

        return call

    def print_line(self, text: str) -> None:
        """Shows a line of text, as it is, above the bar."""
        self._display.print_line(text)


def count_progress(noun: str, total: int, first: int = 0, enabled: bool = True) -> Progress:
    """Returns a `Progress` that counts `total` items, for work that may take a while."""
    return Progress(total, first, noun=noun, delay=REPORT_DELAY, enabled=enabled)


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get('TERM', 'dumb').lower() not in ('dumb', 'unknown')


class _Status:
    """How far the run is, in numbers and in words."""

    def __init__(
        self,
        total_steps: int,
        first_step: int,
        clock: Callable[[], float],
        noun: str,
        delay: float,
    ) -> None:
        self.total_steps = total_steps
        self.delay = delay
        self._noun = noun
        self.step = first_step
        self._clock = clock
        self._started = clock()
        self._values: dict[str, float] = {}
        self._first_update: tuple[int, float] | None = None
        self._last_update = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    def update(self, step: int, values: Mapping[str, Any]) -> None:
        self.step = step
        self._values |= {name.rpartition('/')[2]: float(value) for name, value in values.items()}
        self._last_update = self._clock()
        if self._first_update is None:
            self._first_update = step, self._last_update

    def parts(self) -> dict[str, str]:
        """The parts of a line, in order, by name."""
        total = str(self.total_steps)
        parts = {'step': f'{self._noun} {self.step:>{len(total)}}/{total}'}
        if self._first_update is None:
            parts['loss'] = 'starting'
        if 'loss' in self._values:
            parts['loss'] = f'loss {self._values["loss"]:.4f}'
        if self._values.get('skipped_steps'):
            parts['skipped_steps'] = f'{self._values["skipped_steps"]:.0f} skipped'
        if 'images_per_second' in self._values:
            parts['images_per_second'] = _format_rate(self._values['images_per_second'])
        if not self.finished and (left := self._seconds_left()) is not None:
            parts['left'] = f'{format_duration(left)} left'
        parts['elapsed'] = f'in {format_duration(self.elapsed)}'
        return parts

    def _seconds_left(self) -> float | None:
        """At the mean pace since the first update, which leaves out the time of compiling."""
        if self._first_update is None:
            return None
        first_step, first_time = self._first_update
        if self.step <= first_step:
            return None
        pace = (self._last_update - first_time) / (self.step - first_step)
        return (self.total_steps - self.step) * pace - (self._clock() - self._last_update)


def _format_rate(images_per_second: float) -> str:
    digits = ',.0f' if images_per_second >= 100 else '.3g'
    return f'{images_per_second:{digits}} images/s'


class _LineDisplay:
    """A line now and then."""

    def __init__(self, status: _Status, stream: TextIO) -> None:
        self._status = status
        self._stream = stream
        self._shown_step = status.step
        self._next_line = status.delay

    def start(self) -> None:
        pass

    def stop(self) -> None:
        if self._status.step != self._shown_step and not self._status.delay:
            self._show()

    def updated(self) -> None:
        is_last = self._status.finished and not self._status.delay
        if self._status.elapsed >= self._next_line or is_last:
            self._show()

    def print_line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _show(self) -> None:
        parts = self._status.parts()
        if 'left' in parts:
            del parts['elapsed']
        self.print_line((' ' * _GAP).join(parts.values()))
        self._shown_step = self._status.step
        # Dense enough to watch a run of minutes, sparse enough to read the log of one of days.
        elapsed = self._status.elapsed
        self._next_line = elapsed + min(max(elapsed / 20, 5), 60)


class _BarDisplay:
    """A bar that is redrawn on the last line of the terminal."""

    def __init__(self, status: _Status, stream: TextIO) -> None:
        self._status = status
        self._console = Console(file=stream, force_terminal=True)
        self._live = Live(
            get_renderable=self._draw,
            console=self._console,
            transient=status.delay > 0,
            # A stream that leads elsewhere (2>errors.log) must still lead there.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._logging = contextlib.ExitStack()

    def start(self) -> None:
        before = sys.stdout, sys.stderr
        self._live.start(refresh=True)
        self._logging.enter_context(_logging_through(before, (sys.stdout, sys.stderr)))

    def stop(self) -> None:
        with contextlib.closing(self._logging):
            self._live.stop()

    def updated(self) -> None:
        pass  # the bar is drawn four times a second by itself

    def print_line(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _draw(self) -> Table:
        parts = self._status.parts()

        def bar_room() -> int:
            return self._console.width - sum(len(part) + _GAP for part in parts.values())

        for name in _OPTIONAL_PARTS:
            if bar_room() < _SHORTEST_BAR:
                parts.pop(name, None)
        cells: list[Text | ProgressBar] = [Text(part, no_wrap=True) for part in parts.values()]
        if bar_room() >= _SHORTEST_BAR:
            cells.insert(1, ProgressBar(self._status.total_steps, self._status.step, bar_room()))
        line = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
        line.add_row(*cells)
        return line


@contextlib.contextmanager
def _logging_through(before: Sequence[TextIO], now: Sequence[TextIO]) -> Iterator[None]:
    """Redirects log handlers from the streams of `before` to those of `now`.

    A log handler keeps the stream it was made with, and would write into the middle of the bar.
    """
    with contextlib.ExitStack() as restore:
        for handler in logging.root.handlers:
            handler = getattr(handler, 'python_handler', handler)  # absl wraps the one that writes
            for old, new in zip(before, now, strict=True):
                if isinstance(handler, logging.StreamHandler) and handler.stream is old:
                    handler.setStream(new)
                    restore.callback(handler.setStream, old)
                    break
        yield
