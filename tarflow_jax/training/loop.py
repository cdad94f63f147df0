"""The training run: from a config and a workdir to checkpoints, metrics and samples."""

import collections
import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from tarflow_jax.build import Experiment
from tarflow_jax.data import pipeline
from tarflow_jax.errors import RunError
from tarflow_jax.files import check_writable, describe_error, json_text, remove_unfinished
from tarflow_jax.flow.tarflow import count_parameters
from tarflow_jax.parallel import arrays, distributed, rules
from tarflow_jax.progress import Progress
from tarflow_jax.quantities import format_count
from tarflow_jax.stopping import Stop
from tarflow_jax.training.checkpoint import Checkpoints
from tarflow_jax.training.health import MAX_SKIPPED_IN_A_ROW, TOLERANCE
from tarflow_jax.training.metrics_writer import MetricsWriter
from tarflow_jax.training.milestones import Milestones, grid_of
from tarflow_jax.training.profile import profiled
from tarflow_jax.training.program import count_steps, make_program
from tarflow_jax.training.resume import first_state, reset_health, with_restart_count
from tarflow_jax.training.state import TrainState
from tarflow_jax.training.throughput import Throughput
from tarflow_jax.workdir import (
    check_same_model,
    check_same_run,
    differences_in,
    read_config,
    record_config,
    workdir_lock,
)


class Diverged(Exception):
    """The losses say that the present parameters cannot recover."""

    def __init__(self, step: int, reason: str):
        self.step = step
        super().__init__(f'step {step}: the training has diverged ({reason})')


def train(
    experiment: Experiment,
    workdir: Path,
    stop: Stop,
    *,
    load_params: Callable[[], Any] | None = None,
    allow_changes: bool = False,
) -> int:
    """Trains in `workdir` until the config's last step, from where an earlier run there stopped.

    Where there are several processes, each calls this with the same arguments; a signal to any of
    them stops all after the same step, and one of them writes what is not a checkpoint.

    Args:
      experiment: see `build.Experiment`.
      workdir: the folder of the run, see docs/command_line.md for its files.
      stop: receives the signals.
      load_params: a function that returns the initial parameters of a new run; random without it.
      allow_changes: whether a run may resume with another data set, noise, seed and the like.

    Returns:
      The exit status: 0 when trained to the end, 128 plus the number of a signal that stopped it.

    Raises:
      InputError: the config, the data and the workdir do not go together; nothing was done.
      RunError: the run had to stop; its last sound state is saved.
    """
    with contextlib.ExitStack() as stack:
        if distributed.is_main():
            stack.enter_context(workdir_lock(workdir))
        distributed.all_true(True)  # no process continues unless the workdir is ours
        run = Run(experiment, workdir, stop, load_params, allow_changes)
        try:
            with contextlib.closing(run.checkpoints):
                return run.train()
        except OSError as error:
            raise RunError(
                f'writing in {workdir} failed: {describe_error(error)}. Fix the cause and run the '
                'same command: it resumes from the last checkpoint.'
            ) from error


class Run:
    """What a training run is made of; raises InputError before any time is spent.

    Attributes:
      origin: the step that the run has gone back to, until it has saved another; else infinite.
      data_changed: whether the losses in the workdir are of other data or noise.
      restarts: how often the run has gone back to a checkpoint.
      skipped: how many steps it has skipped.
      sound: whether the last step that was read may be saved.
    """

    progress: Progress
    writer: MetricsWriter

    def __init__(self, experiment, workdir, stop, load_params, allow_changes):
        self.experiment = experiment
        self.config = experiment.config
        self.mesh = experiment.mesh
        self.workdir = workdir
        self.stop = stop
        self.load_params = load_params
        self.origin = math.inf
        self.data_changed = False
        self.restarts = self.skipped = 0
        self.sound = True
        self.throughput = Throughput(self.config.train.batch_size)
        self.train_split = experiment.dataset.split(
            self.config.data.train_split, 'data.train_split'
        )
        self.test_split = experiment.dataset.split(self.config.data.test_split, 'data.test_split')
        self.total_steps = count_steps(self.config.train, len(self.train_split))
        self.program = make_program(experiment, experiment.noise, self.total_steps)
        self.checkpoints = Checkpoints(workdir, keep=self.config.train.keep_checkpoints)
        self.milestones = Milestones(
            *(experiment, workdir, self.checkpoints, self.test_split, self.total_steps, stop)
        )
        if self.checkpoints.steps():
            check_same_model(self.config, workdir)
            if not allow_changes:
                check_same_run(self.config, workdir)

    def train(self) -> int:
        self.check_processes()
        if self.load_params and self.checkpoints.steps() and distributed.is_main():
            logging.warning(
                '%s has checkpoints, from which training resumes; --checkpoint is ignored. To '
                'start from --checkpoint, give another --workdir.',
                self.workdir,
            )
        self.data_changed = distributed.broadcast_from_main(self.has_other_data())
        state = self.first_state()
        step = int(state.step)
        distributed.check_same({'the step of the newest checkpoint': step})
        if step >= self.total_steps and not self.milestones.unfinished(step):
            epochs = step * self.config.train.batch_size / len(self.train_split)
            distributed.print_on_main(
                f'{self.workdir} is trained to step {step} of {self.total_steps} already; '
                f'raise train.num_epochs above {epochs:.4g} to train longer.'
            )
            return 0
        if distributed.is_main():
            self.check_folders()
            remove_unfinished(self.workdir)
            record_config(self.config, self.workdir)
        self.restarts = int(state.restarts)
        self.progress = Progress(self.total_steps, step, enabled=distributed.is_main())
        with self.progress, rules.activation_sharding(self.mesh):
            self.describe(state)
            step = self.train_through(state)
            self.checkpoints.wait()
        status = self.exit_status(step)
        self.print_summary(step, status)
        return status

    def check_processes(self):
        """Raises RunError unless all processes are of one run."""
        config = self.config.to_dict()
        del config['data']['dir']  # each host may have its own
        splits = {'train': len(self.train_split), 'test': len(self.test_split)}
        distributed.check_same({'config': config, 'images': splits})

    def first_state(self, older_than: float = math.inf) -> TrainState:
        state = first_state(
            *(self.program, self.mesh, self.checkpoints),
            seed=self.config.seed,
            load_params=self.load_params,
            older_than=older_than,
        )
        return reset_health(state, self.mesh) if self.data_changed else state

    def has_other_data(self) -> bool:
        """Whether the workdir's losses were those of other data or noise."""
        names = ('data.name', 'data.train_split', 'noise.type', 'noise.std')
        return bool(
            self.checkpoints.steps()
            and differences_in(self.config, read_config(self.workdir), names)
        )

    def check_folders(self):
        """Raises InputError if a folder that the run writes to later is not writable."""
        for name in ('', 'checkpoints', 'samples', 'tensorboard'):
            check_writable(self.workdir / name)

    def train_through(self, state: TrainState) -> int:
        """Trains to the last step or a signal; returns the step that is saved."""
        while True:
            try:
                return self.attempt(state)
            except Diverged as reason:
                diverged = reason.with_traceback(None)  # which holds on to the state
            del state  # there may be no room for two
            state = self.restore_after_divergence(diverged)

    def attempt(self, state: TrainState) -> int:
        """Trains from a state until the end, a signal or a divergence."""
        step = int(state.step)
        unfinished = self.milestones.unfinished(step)
        self.sound = True
        self.writer = MetricsWriter(
            self.workdir,
            step or None,
            redo_scores='evaluate' in unfinished,
            enabled=distributed.is_main(),
        )
        with self.writer:
            self.record_inputs(step)
            self.finish_milestones(step, state, unfinished)
            state = self.run_steps(state)
            step = int(state.step)
            if self.sound and step not in self.saved_steps():
                self.save(step, state)
        return step

    def record_inputs(self, step: int):
        """Records the config, and images that are learned, for TensorBoard."""
        config = json_text(self.config.to_dict(), indent=2)
        self.writer.text(step, 'config', f'```json\n{config}\n```')
        if distributed.is_main():
            self.writer.image(step, 'data', grid_of(self.train_split, self.experiment))

    def saved_steps(self) -> list[int]:
        self.checkpoints.wait()
        return self.checkpoints.steps()

    def restore_after_divergence(self, diverged: Diverged) -> TrainState:
        """Returns the last sound state, for another order of the data."""
        self.checkpoints.wait()
        if self.restarts >= self.config.train.max_restarts:
            self.give_up(diverged)
        self.restarts += 1
        # A checkpoint from which training has diverged again may not be as sound as it looked.
        state = self.first_state(older_than=self.origin)
        self.origin = int(state.step)
        where = f'the checkpoint of step {self.origin}' if self.origin else 'the beginning'
        self.progress.print_line(
            f'{diverged}. Back to {where}, with another order of the data '
            f'({self.restarts} of at most {self.config.train.max_restarts} times)'
        )
        return with_restart_count(state, self.restarts, self.mesh)

    def describe(self, state: TrainState):
        """Says which model is trained on which data, and from which step."""
        self.progress.print_line(
            f'{count_parameters(state.params):,} parameters, {len(self.train_split):,} images of '
            f'{self.experiment.dataset.name}, {self.mesh.size} '
            f'{jax.devices()[0].platform} device(s), '
            f'batches in {self.program.microbatches} part(s), workdir {self.workdir}'
        )
        if state.step:
            self.progress.print_line(f'resuming from the checkpoint of step {int(state.step)}')

    def run_steps(self, state: TrainState) -> TrainState:
        """Trains to the last step or a signal."""
        first_step = int(state.step)
        batch_size = self.config.train.batch_size
        batches = pipeline.train_batches(
            self.train_split,
            batch_size=batch_size,
            seed=order_seed(self.config.seed, self.restarts),
            first_step=first_step,
            rows=arrays.local_rows(self.mesh, batch_size),
            workers=self.config.data.workers,
        )
        self.throughput.restart()
        self.skipped = int(state.skipped)
        pending_reports = collections.deque()
        steps = range(first_step + 1, self.total_steps + 1)
        num_profiled = self.config.train.profile_steps if distributed.is_main() else 0
        with contextlib.closing(batches):
            for step in profiled(steps, self.workdir / 'tensorboard', num_profiled):
                if self.stop.signal:
                    break
                batch = arrays.put_rows(next(batches), self.mesh, batch_size)
                signals = self.stop.signal_array(self.mesh)
                with jax.transfer_guard('disallow'):  # all of it lies on the devices by now
                    state, report = self.program.step(state, batch, signals)
                pending_reports.append((step, report))
                if due := self.milestones.due(step):
                    self.read_all(pending_reports)
                    self.run_milestones(step, state, due)
                elif len(pending_reports) > 1:
                    # The report of a step is read while the next step runs: no device ever waits.
                    self.read(*pending_reports.popleft())
        self.read_all(pending_reports)
        return state

    def read_all(self, pending_reports: collections.deque):
        while pending_reports:
            self.read(*pending_reports.popleft())

    def read(self, step, report):
        """Records a step: its metrics if they are due, and what it says about the training."""
        report = jax.device_get(report)
        self.throughput.step()
        self.stop.record(report['signal'])
        if report['skipped'] > self.skipped:
            self.skipped = int(report['skipped'])
            self.progress.print_line(
                f'step {step}: the loss or its gradient is not finite; the step was skipped '
                f'({self.skipped} so far)'
            )
        values = {
            'train/loss': report['loss'],
            'train/grad_norm': report['grad_norm'],
            'train/skipped_steps': self.skipped,
        }
        if step % self.config.train.log_every == 0:
            # Costs as much as a small step: not for every one.
            factor = self.config.train.restart_factor**self.restarts
            values['train/learning_rate'] = np.asarray(self.program.schedule(step - 1)) * factor
            if pace := self.throughput.images_per_second():
                values['train/images_per_second'] = pace
            if self.restarts:
                values['train/restarts'] = self.restarts
            self.writer.scalars(step, values)
            self.checkpoints.check()
        self.progress.update(step, values)
        self.check_health(step, report)

    def check_health(self, step, report):
        """Raises Diverged if the training cannot recover."""
        self.sound = bool(report['sound'])
        if report['diverged']:
            raise Diverged(step, f'most recent losses are {TOLERANCE:g} nats/dim above the best')
        if report['skipped_in_a_row'] >= MAX_SKIPPED_IN_A_ROW:
            skipped = int(report['skipped_in_a_row'])
            raise Diverged(step, f'{skipped} steps in a row had no finite loss or gradient')

    def give_up(self, diverged: Diverged):
        steps = self.checkpoints.steps()
        sound = (
            f'The last sound checkpoint is {self.checkpoints.folder / str(steps[0])}'
            if steps
            else 'No checkpoint was saved'
        )
        raise RunError(
            f'{diverged}, after {format_count(self.restarts, "restart")} (train.max_restarts). '
            f'{sound}. Lower '
            f'optimizer.peak_learning_rate, which is {self.config.optimizer.peak_learning_rate:g}, '
            'to a third or less, or set optimizer.clip_norm or model.dtype=float32, and run the '
            f'same command: it {"resumes from there" if steps else "starts again"}.'
        )

    def run_milestones(self, step, state: TrainState, due: list[str]):
        """Saves, then scores and samples, as far as each is due: both may take long."""
        if self.sound:
            self.save(step, state)
            self.finish_milestones(step, state, due)
        elif step == self.total_steps:
            raise Diverged(step, f'its loss is {TOLERANCE:g} nats/dim above the best, or infinite')
        else:
            self.progress.print_line(
                f'step {step}: the loss or its gradient is not finite, or the loss is far above '
                'the best; no checkpoint is saved'
            )

    def finish_milestones(self, step, state: TrainState, parts: list[str]):
        self.milestones.reach(step, state, parts, self.writer, self.progress)
        self.throughput.restart()

    def save(self, step, state: TrainState):
        self.checkpoints.save(step, state.to_items())
        self.origin = math.inf

    def exit_status(self, step) -> int:
        """The status of a run that has ended after a step: 0, or that of the signal."""
        is_over = self.sound and step >= self.total_steps and not self.milestones.unfinished(step)
        return 128 + self.stop.signal if self.stop.signal and not is_over else 0

    def print_summary(self, step, status):
        where = self.workdir / self.checkpoints.folder.name / str(step)
        if not status:
            distributed.print_on_main(
                f'Trained to step {step}, saved in {where}. The best checkpoint by the test split '
                f'({format_count(len(self.test_split), "image")}) is that of step '
                f'{self.checkpoints.best_step()}. Samples are in {self.workdir / "samples"}.'
            )
        elif not self.sound:
            distributed.print_on_main(
                f'Stopped by {self.stop.signal.name} at step {step}. It is not saved: its loss or '
                'gradient is not finite, or its loss is far above the best. The same command '
                'resumes from the checkpoint before.'
            )
        else:
            distributed.print_on_main(
                f'Stopped by {self.stop.signal.name} at step {step}. It is saved in {where}; '
                'the same command resumes from there.'
            )


def order_seed(seed: int, restarts: int) -> int:
    """The seed of the order of the data, another one after each restart of a run."""
    if not restarts:
        return seed
    return int(np.random.SeedSequence([seed, restarts]).generate_state(1, np.uint64)[0])
