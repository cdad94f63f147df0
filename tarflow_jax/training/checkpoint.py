"""Checkpoints of a run: asynchronous, atomic, and checked when they are read.

A checkpoint is a folder `checkpoints/<step>/` with the parameters, their moving average, the
optimizer's state and the counters as separate items, so that sampling reads only what it needs,
and a fingerprint of every array. The fingerprint is what notices a flipped bit: Orbax does not.
"""

import contextlib
import logging as python_logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from tarflow_jax.errors import InputError, RunError
from tarflow_jax.parallel import distributed

BEST_METRIC = 'test/nats_per_dim'
FINGERPRINTS = 'fingerprints'

# What asyncio logs of the other tasks of a read or write that failed.
ECHOES = (
    'Task exception was never retrieved',
    'Future exception was never retrieved',
    'Task was destroyed but it is pending',
    'exception calling callback',
    '_GatheringFuture exception was never retrieved',
)


class Checkpoints:
    """The checkpoints of one workdir: the newest few and the best.

    Where there are several processes, all of them call every method, and each writes and reads
    what its own devices hold.

    Args:
      workdir: the folder of the run.
      keep: how many of the newest to keep, besides the one whose `BEST_METRIC` is lowest.
      read_only: to read beside a run that writes.
    """

    def __init__(self, workdir, *, keep: int = 2, read_only: bool = False):
        self.folder = Path(workdir).absolute() / 'checkpoints'
        policies = ocp.checkpoint_managers
        best = policies.BestN(
            get_metric_fn=_badness,
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=_badness,
            best_mode='min',
            cleanup_tmp_directories=True,
            create=False,  # but at the first save, so that a run that is refused leaves no trace
            read_only=read_only,
        )
        self._manager = _Manager(self.folder, options=options)
        self._reader = self._manager if jax.process_count() == 1 else _open_alone(self.folder)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def best_step(self) -> int | None:
        return self._manager.best_step()

    def save(self, step: int, items: dict[str, Any], metrics: dict[str, float] | None = None):
        """Starts saving named trees of arrays.

        Raises:
          RunError: this save, or the one before it, failed.
        """
        prints = {name: fingerprints(tree) for name, tree in items.items()}
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args = ocp.args.Composite(**trees, **{FINGERPRINTS: ocp.args.JsonSave(prints)})
        with self._failures():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """Named trees of arrays like the abstract ones in `items`, checked.

        Raises:
          Damaged: the checkpoint cannot be read, or is not what was saved.
        """
        trees = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
        args = ocp.args.Composite(**trees, **{FINGERPRINTS: ocp.args.JsonRestore()})
        restored: Any = None
        error = None
        try:
            restored = self._reader.restore(step, args=args)
        except Exception as reason:  # Orbax raises nearly anything at damaged files
            error = reason
        if not distributed.agree(error is None):
            raise Damaged(_first_line(error) if error else 'says another process') from error
        for name in items:
            if fingerprints(restored[name]) != restored[FINGERPRINTS].get(name):
                raise Damaged(f'the arrays of {name} are not those that were saved')
        return {name: restored[name] for name in items}

    def restore_newest(self, items: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """The newest sound checkpoint and its step; None if there is no checkpoint at all.

        Damaged ones are named in a warning.

        Raises:
          InputError: there are checkpoints, all damaged.
        """
        damaged = {}
        for step in self.steps():
            try:
                return step, self.restore(step, items)
            except Damaged as reason:
                damaged[step] = reason
                if distributed.is_main():
                    logging.warning(
                        'The checkpoint %s is damaged (%s); the one before it is used.',
                        self.folder / str(step),
                        reason,
                    )
        if damaged:
            raise InputError(
                f'all checkpoints in {self.folder} are damaged: {sorted(damaged)}. To begin anew, '
                'give another --workdir (or move that folder away).'
            )
        return None

    def set_aside(self, newer_than: int) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        for step in self.steps():
            if step > newer_than and distributed.is_main():
                names = (f'{step}.damaged{n}' for n in ['', *range(2, 1000)])
                free = next(name for name in names if not (self.folder / name).exists())
                os.rename(self.folder / str(step), self.folder / free)
        distributed.agree(True)  # the others see it done
        self._manager.reload()

    def check(self) -> None:
        """Raises RunError if the last save has failed by now; waits for nothing."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns once every save is on disk; raises RunError if one failed."""
        with self._failures():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _failures(self):
        try:
            yield
        except Exception as error:  # a full disk comes as OSError, ValueError or XlaRuntimeError
            raise RunError(
                f'saving a checkpoint in {self.folder} failed: {_first_line(error)}. '
                f'{self._last_good()} Mend that (is the disk full?) and run the same command.'
            ) from error

    def _last_good(self) -> str:
        steps = [int(p.name) for p in self.folder.glob('*') if p.is_dir() and p.name.isdigit()]
        if not steps:
            return 'There is no earlier one.'
        return f'The last good one, of step {max(steps)}, is untouched.'

    def close(self) -> None:
        if self._reader is not self._manager:
            self._reader.close()
        self._manager.close()


class _Manager(ocp.CheckpointManager):
    """Orbax's, which gives up at the start if the metrics of any checkpoint are damaged."""

    def metrics(self, step):
        """The metrics saved with a step; None if there are none that can be read."""
        try:
            metrics = super().metrics(step)
        except (OSError, ValueError):
            metrics = None
        return metrics if isinstance(metrics, dict) and BEST_METRIC in metrics else None


def _open_alone(folder: Path) -> _Manager:
    """A manager to read with that waits for no other process, which may find its part damaged."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'reader{me}'
    )
    options = ocp.CheckpointManagerOptions(
        create=False,
        best_fn=_badness,
        best_mode='min',
        read_only=True,
        multiprocessing_options=alone,
    )
    return _Manager(folder, options=options)


class Damaged(Exception):
    """A checkpoint that cannot be trusted; the message says why."""


def quiet_orbax() -> Callable[[], None]:
    """Keeps Orbax's notes and echoes off the terminal; its errors are raised anyway.

    The notes are about its own options. The echoes are those of a read or write that failed: its
    other threads and coroutines find the event loop gone that started them, and say so one by one.

    Returns:
      What undoes it: a program needs no such thing, a library owes it to its caller.
    """

    def is_worth_showing(record: python_logging.LogRecord) -> bool:
        return 'orbax' not in record.pathname

    def is_no_echo(record: python_logging.LogRecord) -> bool:
        return not record.getMessage().startswith(ECHOES)

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


def fingerprints(tree) -> dict[str, int]:
    """A number for each array of a tree by its path; equal on any mesh, changed by any bit flip."""
    prints = jax.device_get(_fingerprints(tree))
    flat, _ = jax.tree_util.tree_flatten_with_path(prints)
    return {jax.tree_util.keystr(path): int(value) for path, value in flat}


@jax.jit
def _fingerprints(tree):
    return jax.tree.map(_fingerprint, tree)


def _fingerprint(array):
    """The sum of the array's 32-bit words, each times an odd number of its own, modulo 2^32."""
    words = jax.lax.bitcast_convert_type(array.astype(_word_dtype(array)), jnp.uint32).ravel()
    odd = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
    return (words * odd).sum(dtype=jnp.uint32)


def _word_dtype(array):
    return jnp.float32 if jnp.issubdtype(array.dtype, jnp.floating) else jnp.uint32


def _badness(metrics) -> float:
    value = metrics[BEST_METRIC]
    return value if np.isfinite(value) else np.inf


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition('\n')[0]
    return f'{type(error).__name__}: {line.partition(" See full TensorStore details")[0]}'
