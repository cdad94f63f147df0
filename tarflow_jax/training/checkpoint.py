"""Checkpoints of a run: asynchronous, atomic, and checked when they are read.

A checkpoint is a folder `checkpoints/<step>/` with the parameters, their moving average, the
optimizer's state and the counters as separate items, so that sampling reads only what it needs,
and a fingerprint of every array. The fingerprint detects flipped bits, which Orbax does not.
Scores are added later, to `checkpoints/<step>/metrics/metrics`: a state is saved before it is
scored.
"""

import contextlib
import json
import logging as python_logging
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from tarflow_jax.errors import InputError, RunError
from tarflow_jax.files import describe_error, write_json
from tarflow_jax.parallel import distributed
from tarflow_jax.parallel.fingerprints import fingerprints

SCORES = 'test/'  # begins the names of scores
BEST_METRIC = f'{SCORES}nats_per_dim'
FINGERPRINTS = 'fingerprints'
STEP_ITEM = 'counters'  # the item that holds the step

# Seconds before reading is retried, after errors that do not prove that a checkpoint is damaged.
RETRY_SECONDS = (0.5, 2.0, 5.0)
POLL_SECONDS = 0.5  # between two looks at a folder that another process may be removing
MAX_POLLS = 20

# TensorStore's words for files that are not what was written.
DAMAGE = ('DATA_LOSS', 'OUT_OF_RANGE', 'NOT_FOUND', 'INVALID_ARGUMENT', 'FAILED_PRECONDITION')

# What asyncio logs of the other tasks of a read or write that failed.
SECONDARY_ERRORS = (
    'Task exception was never retrieved',
    'Future exception was never retrieved',
    'Task was destroyed but it is pending',
    'exception calling callback',
    '_GatheringFuture exception was never retrieved',
)


class Checkpoints:
    """The checkpoints of one workdir: the newest few and the best.

    Where there are several processes, all of them call every method. Process 0 says which
    checkpoints there are, and each process writes and reads what its own devices hold.

    Args:
      workdir: the folder of the run.
      keep: how many of the newest to keep, besides the one whose `BEST_METRIC` is lowest.
      read_only: whether to read only, beside a run that writes.
    """

    def __init__(self, workdir, *, keep: int = 2, read_only: bool = False):
        self.folder = Path(workdir).absolute() / 'checkpoints'
        self._keep = keep
        self._read_only = read_only
        self._reader = _open_reader()
        self._manager = None if read_only else self._open_manager()

    def _open_manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),
            preservation_policy=self,
            cleanup_tmp_directories=True,
            create=False,  # but at the first save, so that a run that is refused leaves no trace
            lightweight_initialize=True,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    @property
    def _writer(self) -> ocp.CheckpointManager:
        assert self._manager, 'opened to be read only'
        return self._manager

    def steps(self) -> list[int]:
        """The steps of all checkpoints on disk, newest first."""
        return distributed.broadcast_from_main(self._list() if distributed.is_main() else None)

    def _list(self) -> list[int]:
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        steps = [int(name) for name in names if re.fullmatch('0|[1-9][0-9]{0,17}', name)]
        return sorted((step for step in steps if self._at(step).is_dir()), reverse=True)

    def _at(self, step: int) -> Path:
        return self.folder / str(step)

    def scores(self, step: int) -> dict[str, float] | None:
        """The scores of a checkpoint; None if there are none that can be read."""
        return distributed.broadcast_from_main(
            self._read_scores(step) if distributed.is_main() else None
        )

    def _read_scores(self, step: int) -> dict[str, float] | None:
        try:
            scores = json.loads((self._at(step) / 'metrics' / 'metrics').read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return scores if isinstance(scores, dict) and BEST_METRIC in scores else None

    def best_step(self) -> int | None:
        """The step whose `BEST_METRIC` is lowest; None if none has any."""
        return distributed.broadcast_from_main(
            self._best_of(self._list()) if distributed.is_main() else None
        )

    def _best_of(self, steps: list[int]) -> int | None:
        scores = {step: self._read_scores(step) for step in sorted(steps, reverse=True)}
        scored = {step: _score_key(values) for step, values in scores.items() if values}
        return min(scored, key=scored.__getitem__, default=None)

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Orbax's preservation policy: the newest few and the best."""
        del context
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        kept = {*steps[-self._keep :], self._best_of(steps)}
        return [checkpoint.step in kept for checkpoint in checkpoints]

    def save(self, step: int, items: dict[str, Any]):
        """Starts saving named trees of arrays.

        Checkpoints of this step and later ones are of a run that has gone back since: they are set
        aside.

        Raises:
          RunError: this save, or the one before it, failed.
        """
        self.wait()
        self.set_aside(newer_than=step - 1, because='abandoned')
        prints = {name: fingerprints(tree) for name, tree in items.items()}
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args = ocp.args.Composite(**trees, **{FINGERPRINTS: ocp.args.JsonSave(prints)})
        with self._failures():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._writer.save(step, args=args, force=True)

    def attach(self, step: int, scores: dict[str, float]) -> None:
        """Keeps scores with the checkpoint of a step, once that is on disk.

        Raises:
          RunError: they cannot be written, or a save failed.
        """
        self.wait()
        if distributed.is_main():
            with self._failures():
                write_json(self._at(step) / 'metrics' / 'metrics', scores)
        distributed.all_true(True)  # the others see it done

    def restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """Named trees of arrays like the abstract ones in `items`, checked.

        Args:
          step: the step of the checkpoint.
          items: abstract trees by name.

        Raises:
          RemovedCheckpoint: another process has removed the checkpoint meanwhile.
          DamagedCheckpoint: the files, or the fingerprints of the arrays, are not what was saved.
          RunError: the checkpoint could not be read, again and again; it may be sound.
        """
        try:
            return self._restore(step, items)
        except DamagedCheckpoint as reason:
            if self._read_only and distributed.broadcast_from_main(self._is_vanishing(step)):
                raise RemovedCheckpoint('another process removed it') from reason
            raise

    def _restore(self, step, items) -> dict[str, Any]:
        error: Exception | None = None
        prints: dict[str, Any] = {}
        restored: dict[str, Any] = {}
        try:
            prints = self._read_patiently(lambda: self._read_prints(step))
            if missing := items.keys() - prints.keys():
                raise InputError(
                    f'{self._at(step)} was saved by an earlier version, without '
                    f'{", ".join(sorted(missing))}. It can be sampled and scored, but not resumed: '
                    f'train in another --workdir with --checkpoint={self._at(step)}.'
                )
            restored = self._read_patiently(lambda: self._read(step, items))
        except (DamagedCheckpoint, RunError) as reason:
            error = reason
        failures = distributed.all_gather(error and [isinstance(error, RunError), str(error)])
        if passing := [words for may_pass, words in filter(None, failures) if may_pass]:
            raise RunError(passing[0]) from error
        if any(failures):
            raise error or DamagedCheckpoint('another process found damage')
        differing = [name for name in restored if fingerprints(restored[name]) != prints.get(name)]
        if not distributed.all_true(not differing):
            whose = ', '.join(differing) or 'another process'
            raise DamagedCheckpoint(f'the arrays of {whose} are not those that were saved')
        if STEP_ITEM in restored and (held := int(restored[STEP_ITEM]['step'])) != step:
            raise DamagedCheckpoint(f'it belongs to step {held}, and was copied or renamed')
        return restored

    def _read_patiently(self, read) -> Any:
        """Calls `read()`, and retries after errors that may be temporary.

        Raises:
          DamagedCheckpoint: what it raises proves damage.
          RunError: it never succeeds.
        """
        for seconds in (*RETRY_SECONDS, None):
            try:
                return read()
            except Exception as wrapped:
                error = _cause(wrapped)
                if _proves_damage(error):
                    raise DamagedCheckpoint(_first_line(error)) from error
                if seconds is None:
                    raise RunError(
                        f'reading a checkpoint in {self.folder} failed {len(RETRY_SECONDS) + 1} '
                        f'times ({_first_line(error)}). The checkpoint may be intact and was not '
                        'changed. Fix the cause and run the same command.'
                    ) from error
            time.sleep(seconds)

    def _read_prints(self, step) -> dict[str, dict[str, int]]:
        if not distributed.is_main() and not self._at(step).is_dir():
            raise OSError(
                f'process {jax.process_index()} does not see {self._at(step)}: do all hosts share '
                'the workdir?'
            )
        prints = json.loads((self._at(step) / FINGERPRINTS / 'metadata').read_bytes())
        if not isinstance(prints, dict):
            raise ValueError(f'its {FINGERPRINTS} are not a dictionary')
        return prints

    def _read(self, step, items) -> dict[str, Any]:
        return {
            name: self._reader.restore(self._at(step) / name, args=ocp.args.StandardRestore(item))
            for name, item in items.items()
        }

    def _is_vanishing(self, step: int) -> bool:
        """Whether a checkpoint has been removed, or is being removed."""
        before = self._files_of(step)
        time.sleep(POLL_SECONDS)
        return not self._at(step).is_dir() or self._files_of(step) != before

    def _files_of(self, step: int) -> list[str]:
        walk = os.walk(self._at(step))  # passes over what vanishes meanwhile
        return sorted(os.path.join(folder, name) for folder, _, names in walk for name in names)

    def restore_newest(
        self, items: dict[str, Any], older_than: float = math.inf
    ) -> tuple[int, dict[str, Any]] | None:
        """The newest sound checkpoint and its step; None if there is no checkpoint at all.

        Damaged ones are named in a warning.

        Args:
          items: abstract trees by name.
          older_than: the step before which to look.

        Raises:
          InputError: there are checkpoints, all damaged.
          RunError: one could not be read, or they are removed faster than they can be read.
        """
        damaged: list[int] = []
        looks = 0
        while True:
            listed = self.steps()
            steps = [n for n in listed if n < older_than and n not in damaged]
            if not steps:
                break
            try:
                return steps[0], self.restore(steps[0], items)
            except DamagedCheckpoint as reason:
                # A concurrent run that saves and removes checkpoints leaves none damaged.
                if isinstance(reason, RemovedCheckpoint) or (
                    self._read_only and self.steps() != listed
                ):
                    looks += 1
                    self._check_looks(looks)
                    continue
                damaged.append(steps[0])
                if distributed.is_main():
                    logging.warning(
                        'The checkpoint %s is damaged (%s); the one before it is used.',
                        self._at(steps[0]),
                        reason,
                    )
        if damaged:
            raise InputError(
                f'all checkpoints in {self.folder} are damaged: {sorted(damaged)}. To start again, '
                'give another --workdir (or move that folder away).'
            )
        return None

    def _check_looks(self, looks: int) -> None:
        """Raises RunError after too many attempts to read the checkpoints of a folder."""
        if looks == MAX_POLLS:
            raise RunError(
                f'the checkpoints in {self.folder} are removed faster than they can be read, by '
                'the run that writes them: wait for its end, or raise its train.keep_checkpoints '
                'or train.checkpoint_every.'
            ) from None

    def set_aside(self, newer_than: int, because: str = 'damaged') -> None:
        """Renames newer checkpoints, to `<step>.<because>`, so that their steps can be saved."""
        newer = [step for step in self.steps() if step > newer_than]
        if not newer:
            return
        if distributed.is_main():
            for step in newer:
                names = (f'{step}.{because}{n}' for n in ['', *range(2, 1000)])
                free = next(name for name in names if not (self.folder / name).exists())
                os.rename(self._at(step), self.folder / free)
        distributed.all_true(True)  # the others see it done
        self._writer.reload()

    def check(self) -> None:
        """Raises RunError if the last save has failed by now; waits for nothing."""
        if not self._writer.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns once every save is on disk; raises RunError if one failed."""
        with self._failures():
            self._writer.wait_until_finished()

    @contextlib.contextmanager
    def _failures(self):
        try:
            yield
        except Exception as error:  # a full disk comes as OSError, ValueError or XlaRuntimeError
            raise RunError(
                f'saving a checkpoint in {self.folder} failed: {describe_error(error)}. '
                f'{self._last_good()} Fix the cause and run the same command.'
            ) from error

    def _last_good(self) -> str:
        steps = self._list()
        if not steps:
            return 'There is no earlier one.'
        return f'The last good one, of step {steps[0]}, is untouched.'

    def close(self) -> None:
        self._reader.close()
        if self._manager:
            self._manager.close()


def newest_and_best(workdir) -> tuple[int | None, int | None]:
    """The steps of a workdir's newest checkpoint and of its best; None for one that it lacks."""
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        return next(iter(checkpoints.steps()), None), checkpoints.best_step()


def _open_reader() -> ocp.Checkpointer:
    """A reader that waits for no other process, which may find its part damaged."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'reader{me}'
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _cause(error: BaseException) -> BaseException:
    """The error that Orbax has wrapped in an Exception that says where it was reading."""
    while type(error) is Exception and error.__cause__:
        error = error.__cause__
    return error


def _proves_damage(error: BaseException) -> bool:
    """Whether an error of reading says that the files are not what was written."""
    if isinstance(error, ValueError) and (status := re.match('([A-Z_]+): ', str(error))):
        return status[1] in DAMAGE
    missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    malformed = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
    return isinstance(error, (*missing, *malformed))


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be trusted; the message says why."""


class RemovedCheckpoint(DamagedCheckpoint):
    """A checkpoint that was removed while it was read."""


def quiet_orbax() -> Callable[[], None]:
    """Hides Orbax's log records and the secondary errors of its threads; it still raises errors.

    The log records concern its own options. The secondary errors follow a failed read or write: its
    other threads and coroutines report one by one that their event loop is closed.

    Returns:
      A function that undoes this. A program need not call it, but library code should.
    """

    def is_worth_showing(record: python_logging.LogRecord) -> bool:
        return 'orbax' not in record.pathname

    def is_no_echo(record: python_logging.LogRecord) -> bool:
        return not record.getMessage().startswith(SECONDARY_ERRORS)

    def show(unraisable):
        code = getattr(unraisable.object, 'cr_code', None)
        is_of_coroutine = code is not None and 'orbax' in code.co_filename
        if not is_of_coroutine and str(unraisable.exc_value) != 'Event loop is closed':
            shown_before(unraisable)

    undo = contextlib.ExitStack()
    for logger, condition in (
        (logging.get_absl_logger(), is_worth_showing),
        (python_logging.getLogger('asyncio'), is_no_echo),
    ):
        logger.addFilter(condition)
        undo.callback(logger.removeFilter, condition)
    undo.enter_context(warnings.catch_warnings())
    never_awaited = r"coroutine '.*' was never awaited"
    warnings.filterwarnings('ignore', never_awaited, category=RuntimeWarning)
    shown_before, sys.unraisablehook = sys.unraisablehook, show
    undo.callback(setattr, sys, 'unraisablehook', shown_before)
    return undo.close


def _score_key(scores: dict[str, Any]) -> float:
    value = scores[BEST_METRIC]
    return value if isinstance(value, int | float) and math.isfinite(value) else math.inf


def _first_line(error: BaseException) -> str:
    line = str(error).strip().partition('\n')[0]
    return f'{type(error).__name__}: {line.partition(" See full TensorStore details")[0]}'
