"""What a person sees while a data set is prepared: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10


class PreparationDisplay:
    """Shows how far each stage is. A context manager, after which the terminal is as it was.

    Args:
        stream: where to show it; by default what sys.stdout is now.
        clock: seconds that only ever grow.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._console = Console(file=stream or sys.stdout, soft_wrap=True)
        on_terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._bar = Progress(
            TextColumn('{task.description:8}'),
            BarColumn(),
            TextColumn('{task.completed:,} of {task.total:,}'),
            TimeRemainingColumn(),
            console=self._console,
            disable=not on_terminal,
        )
        self._on_terminal = on_terminal
        self._clock = clock
        self._next_line = clock() + _SECONDS_BETWEEN_LINES
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Shows a line of text, as it is, above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Shows that so many of so many images are through a stage."""
        if self._on_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bar.add_task(stage)
            self._bar.update(self._tasks[stage], completed=done, total=total)
        elif done == total or self._clock() >= self._next_line:
            self.say(f'{stage}: {done:,} of {total:,}')
            self._next_line = self._clock() + _SECONDS_BETWEEN_LINES
