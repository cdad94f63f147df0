"""The record of a run: `metrics.jsonl` always, and the same for TensorBoard."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import text as text_summary

from tarflow_jax.files import json_text, write_atomically
from tarflow_jax.imagefiles import encode_png
from tarflow_jax.training.checkpoint import SCORES


class MetricsWriter:
    """Records named numbers and images by step, as lines of JSON and as TensorBoard events.

    What was recorded is on its way to the disk when a method returns, so a killed run loses none
    of it. `workdir/metrics.jsonl` has one object a line, `{"step": 100, "train/loss": 0.5}`;
    events are in `workdir/tensorboard/`. Methods raise OSError when the disk is full.

    Args:
      workdir: the folder of the run; made if it is missing.
      resume_step: the step of the checkpoint from which the run resumes. Later records of a killed
        run will be recorded again, so they are removed: their lines are deleted from the file, and
        TensorBoard is told to purge their events. None is for a new run, whose record starts empty.
      redo_scores: whether the scores (`test/...`) of `resume_step` itself will be recorded again.
      enabled: False makes a writer that writes nothing, for all processes but the main one.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        resume_step: int | None = None,
        *,
        redo_scores: bool = False,
        enabled: bool = True,
    ) -> None:
        self._lines = Path(workdir, 'metrics.jsonl')
        self._events = None
        if enabled:
            last_step = -1 if resume_step is None else resume_step
            _forget_lines_after(last_step, self._lines, redo_scores)
            self._events = _open_events(Path(workdir, 'tensorboard'), purge_step=last_step + 1)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Records numbers, Python's or arrays of one element on the host, under their names.

        NaN and the infinities are null in the lines, and themselves in TensorBoard.
        """
        if self._events is None:
            return
        numbers = {name: np.asarray(value).item() for name, value in values.items()}
        with open(self._lines, 'a', encoding='utf-8') as file:
            file.write(json_text({'step': int(step), **numbers}) + '\n')
        self._write_event(
            step, [Summary.Value(tag=name, simple_value=n) for name, n in numbers.items()]
        )

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Records an image for TensorBoard: uint8 [H, W], [H, W, 1] or [H, W, 3]."""
        if self._events is None:
            return
        height, width = image.shape[:2]
        png = Summary.Image(
            height=height,
            width=width,
            colorspace=1 if image.ndim == 2 else image.shape[-1],
            encoded_image_string=encode_png(image),
        )
        self._write_event(step, [Summary.Value(tag=name, image=png)])

    def text(self, step: int, name: str, text: str) -> None:
        """Records a text for TensorBoard, which reads it as Markdown."""
        if self._events is not None:
            self._write_event(step, list(text_summary(name, text).value))

    def close(self) -> None:
        """Ends the record; what is recorded afterwards is not written."""
        events, self._events = self._events, None
        if events is not None:
            events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write_event(self, step: int, values: list[Summary.Value]) -> None:
        event = Event(wall_time=time.time(), step=int(step), summary=Summary(value=values))
        if self._events is not None:
            self._events.write_event(event)
            self._events.flush()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a workdir's `metrics.jsonl`, `{'step': 100, 'train/loss': 0.5}` and the like.

    What was not finite is None. Lines that cannot be read are left out; none without such a file.
    """
    path = Path(workdir, 'metrics.jsonl')
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [record for record in map(_read_line, lines) if record]


def _forget_lines_after(last_step: int, path: Path, redo_scores: bool) -> None:
    """Keeps the lines of steps up to `last_step`, byte for byte.

    A last line that was cut short goes. Others that cannot be read are moved to a file beside
    it: they may be all that is left of a history.
    """
    content = path.read_bytes() if path.exists() else b''
    lines = content.splitlines(keepends=True)
    records = [(line, _read_line(line)) for line in lines]
    if lines and records[-1][1] is None and not content.endswith(b'\n') and _is_cut(lines[-1]):
        records.pop()

    def is_kept(record: dict[str, Any]) -> bool:
        is_redone = redo_scores and any(name.startswith(SCORES) for name in record)
        return record['step'] < last_step + (not is_redone)

    unreadable = b''.join(line for line, record in records if record is None)
    if unreadable:
        aside = path.with_name(f'{path.name}.unreadable')
        with open(aside, 'ab') as file:
            file.write(unreadable)
        logging.warning('Lines of %s that are not metrics were moved to %s.', path, aside)
    kept = [line.rstrip(b'\r\n') + b'\n' for line, record in records if record and is_kept(record)]
    write_atomically(path, lambda file: file.write(b''.join(kept)))


def _is_cut(line: bytes) -> bool:
    """Whether a line that cannot be read begins as a line of metrics does."""
    return b'{"step": '.startswith(line[:9])


def _read_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if it cannot be read."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(record, dict) and type(record.get('step')) is int:
        return record
    return None


def _open_events(folder: Path, purge_step: int) -> EventsWriter:
    """A new event file, at whose start TensorBoard forgets earlier events from `purge_step` on.

    tensorboardX's SummaryWriter hands events to a thread. Should that die, of a full disk say, the
    run would wait forever for a place in its queue; its EventsWriter writes, or raises, at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Its own name for the file counts in seconds: a quick restart would overwrite the last one.
    events = EventsWriter(str(folder / 'events'), filename_suffix=f'.{time.time_ns()}')
    start = SessionLog(status=SessionLog.START)
    events.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))
    events.flush()
    return events
