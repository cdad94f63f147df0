"""The training run: from a config and a workdir to checkpoints, metrics and samples."""

import collections
import contextlib
from pathlib import Path

import jax
import numpy as np
from absl import logging

from tarflow_jax import experiment, imagefiles
from tarflow_jax.data import pipeline
from tarflow_jax.errors import RunError
from tarflow_jax.evaluation import likelihood
from tarflow_jax.files import workdir_lock
from tarflow_jax.parallel import distributed, rules
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.sampling.generate import generate
from tarflow_jax.stopping import Stop
from tarflow_jax.training import state as states
from tarflow_jax.training.checkpoint import Checkpoints
from tarflow_jax.training.metrics import MetricsWriter
from tarflow_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tarflow_jax.training.pace import Pace
from tarflow_jax.training.progress import Progress
from tarflow_jax.training.start import first_state
from tarflow_jax.training.step import jit_train_step

GRID_SAMPLES = 100  # at most, in a grid drawn during training


def train(config, workdir, checkpoint=None, *, allow_changes: bool = False) -> int:
    """Trains in `workdir` until the config's last step, from where an earlier run there stopped.

    Where there are several processes, each calls this with the same arguments; a signal to any of
    them stops all after the same step, and one of them writes what is not a checkpoint.

    Args:
      config: see `configs/base.py`.
      workdir: gets config.json, metrics.jsonl, checkpoints/, samples/ and tensorboard/.
      checkpoint: what a new run takes its first parameters from, see `tarflow_jax.load`.
      allow_changes: whether a run may resume with another data set, noise, seed and the like.

    Returns:
      The exit status: 0 when trained to the end, 128 plus the number of a signal that stopped it.

    Raises:
      InputError: the config, the data and the workdir do not go together; nothing was done.
      RunError: the run had to stop; its last good state is saved.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop())
        if distributed.is_main():
            stack.enter_context(workdir_lock(workdir))
        distributed.agree(True)  # nobody goes on unless the workdir is ours
        run = Run(config, workdir, allow_changes)
        try:
            with contextlib.closing(run.checkpoints):
                return run.train(checkpoint, stop)
        except OSError as error:
            raise RunError(
                f'writing in {workdir} failed: {error}. Mend that (is the disk full?) and run the '
                'same command: it goes on from the last checkpoint.'
            ) from error


class Run:
    """What a training run is made of; raises InputError before any time is spent."""

    def __init__(self, config, workdir, allow_changes):
        experiment.check_keys(config)
        self.config = config
        self.workdir = Path(workdir)
        self.model = experiment.make_model(config)
        self.mesh = make_mesh(**config.mesh)
        self.dataset = experiment.open_data(config, self.model)
        self.noise = experiment.make_noise(config, self.dataset)
        self.how_to_sample = experiment.how_to_sample(config, self.model)
        self.train_split = self.dataset.split(config.data.train_split)
        self.test_split = self.dataset.split(config.data.test_split)
        experiment.check_batch_size(
            config.train.batch_size,
            config.train.microbatches,
            len(self.train_split),
            self.mesh,
        )

        self.total_steps = experiment.count_steps(config, len(self.train_split))
        self.schedule = learning_rate_schedule(
            peak=config.optimizer.peak_learning_rate,
            floor=config.optimizer.final_learning_rate,
            warmup_steps=config.optimizer.warmup_steps,
            total_steps=self.total_steps,
        )
        self.optimizer = make_optimizer(
            self.schedule,
            b1=config.optimizer.b1,
            b2=config.optimizer.b2,
            weight_decay=config.optimizer.weight_decay,
            clip_norm=config.optimizer.clip_norm,
            first_moment_dtype=config.optimizer.first_moment_dtype,
        )
        self.checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints)
        if self.checkpoints.steps():
            experiment.check_same_model(config, workdir)
            if not allow_changes:
                experiment.check_same_run(config, workdir)

    def train(self, checkpoint, stop: Stop) -> int:
        self.stop = stop
        if checkpoint and self.checkpoints.steps() and distributed.is_main():
            logging.warning(
                '%s has checkpoints of its own, from which training resumes: --checkpoint=%s, from '
                'which a new run takes its first parameters, is not read. To start from it, give '
                'another --workdir.',
                *(self.workdir, checkpoint),
            )
        state = first_state(
            self.config, self.model, self.optimizer, self.mesh, self.checkpoints, checkpoint
        )
        first_step = int(state.step)
        if first_step >= self.total_steps:
            say(
                f'{self.workdir} is trained to step {first_step} of {self.total_steps} already; '
                'raise train.num_epochs to go on.'
            )
            return 0
        is_main = distributed.is_main()
        if is_main:
            self.clear_away_unfinished()
            experiment.record_config(self.config, self.workdir)
        self.writer = MetricsWriter(self.workdir, first_step or None, enabled=is_main)
        self.progress = Progress(self.total_steps, first_step, enabled=is_main)
        with self.writer, self.progress:
            self.describe(state)
            with rules.on(self.mesh):
                state = self.take_steps(state)
            step = int(state.step)
            if step not in self.checkpoints.steps():
                self.save(step, state)
            self.checkpoints.wait()
        return self.say_goodbye(step)

    def clear_away_unfinished(self):
        """Deletes the files that a killed run had begun to write."""
        for pattern in ('.config.json.*', '.metrics.jsonl.*', 'samples/.step_*'):
            for leftover in self.workdir.glob(f'{pattern}.unfinished'):
                leftover.unlink(missing_ok=True)

    def describe(self, state: states.TrainState):
        """Says what is trained on what, and where it goes on."""
        params = sum(x.size for x in jax.tree.leaves(state.params))
        self.progress.say(
            f'{params:,} parameters, {len(self.train_split):,} images of {self.dataset.name}, '
            f'{self.mesh.size} {jax.devices()[0].platform} device(s), workdir {self.workdir}'
        )
        if state.step:
            self.progress.say(f'going on from the checkpoint of step {int(state.step)}')

    def take_steps(self, state: states.TrainState) -> states.TrainState:
        """Trains to the last step, or until told to stop."""
        first_step = int(state.step)
        train_step = jit_train_step(
            self.config,
            self.model,
            self.optimizer,
            self.noise,
            self.mesh,
            rules.shardings(state, self.mesh),
        )
        batch_size = self.config.train.batch_size
        rows = distributed.local_rows(self.mesh, batch_size)
        batches = pipeline.train_batches(
            self.train_split,
            batch_size=batch_size,
            seed=self.config.seed,
            first_step=first_step,
            rows=rows,
            workers=self.config.data.workers,
        )
        self.pace = Pace(batch_size)
        self.skipped = int(state.skipped)
        unread = collections.deque()
        with contextlib.closing(batches):
            for step in range(first_step + 1, self.total_steps + 1):
                if self.stop.agreed:
                    break
                batch = distributed.put_rows(next(batches), self.mesh, batch_size, rows)
                state, report = train_step(state, batch, self.stop.received_on(self.mesh))
                unread.append((step, report))
                if self.is_pause(step):
                    self.read_all(unread, state)
                    self.pause(step, state)
                elif len(unread) > 1:
                    # Steps run ahead of what is read of them by one: the device never waits.
                    self.read(*unread.popleft(), state)
        self.read_all(unread, state)
        return state

    def read_all(self, unread: collections.deque, state: states.TrainState):
        while unread:
            step, report = unread.popleft()
            self.read(step, report, state)

    def read(self, step, report, state: states.TrainState):
        """Takes note of a step: its metrics if they are due, and whether it was skipped."""
        report = jax.device_get(report)
        self.pace.step()
        self.stop.note(report['signal'])
        if report['skipped'] > self.skipped:
            self.skipped = int(report['skipped'])
            self.progress.say(
                f'step {step}: the loss or its gradient is not finite; the step was skipped '
                f'({self.skipped} so far)'
            )
        if report['skipped_in_a_row'] >= self.config.train.max_skipped_in_a_row:
            self.give_up(step, state)
        values = {
            'train/loss': report['loss'],
            'train/grad_norm': report['grad_norm'],
            'train/skipped_steps': self.skipped,
        }
        if step % self.config.train.log_every == 0:
            # Costs as much as a small step: not for every one.
            values['train/learning_rate'] = np.asarray(self.schedule(step - 1))
            values['train/images_per_second'] = self.pace.images_per_second()
            self.writer.scalars(step, values)
            self.checkpoints.check()
        self.progress.update(step, values)

    def give_up(self, step, state: states.TrainState):
        """Skipped steps changed nothing, so the present state is the last good one."""
        self.save(int(state.step), state)
        self.checkpoints.wait()
        raise RunError(
            f'{self.config.train.max_skipped_in_a_row} steps in a row, up to step {step}, had a '
            f'loss or gradient that is not finite. The last good state is saved in '
            f'{self.checkpoints.folder / str(int(state.step))}. Lower '
            'optimizer.peak_learning_rate, set optimizer.clip_norm, or use model.dtype=float32, '
            'and run again to go on from it.'
        )

    def is_pause(self, step) -> bool:
        return any(self.is_due(step, what) for what in ('evaluate', 'sample', 'checkpoint'))

    def is_due(self, step, what) -> bool:
        return step % self.config.train[f'{what}_every'] == 0 or step == self.total_steps

    def pause(self, step, state: states.TrainState):
        """Scores, samples and saves, as far as each is due."""
        metrics = None
        if self.is_due(step, 'evaluate'):
            metrics = self.evaluate(step, state)
        if self.is_due(step, 'sample'):
            self.sample(step, state)
        if self.is_due(step, 'checkpoint') or metrics:
            self.save(step, state, metrics)
        self.pace.restart()

    def evaluate(self, step, state: states.TrainState) -> dict[str, float]:
        scores = likelihood.evaluate(
            self.model,
            state.sampling_params,
            self.test_split,
            self.noise,
            self.mesh,
            batch_size=self.config.evaluate.batch_size,
            num_draws=self.config.train.evaluate_draws,
            seed=self.config.evaluate.seed,
        )
        metrics = {f'test/{name}': scores[name] for name in ('nats_per_dim', 'bits_per_dim')}
        self.writer.scalars(step, metrics)
        self.progress.evaluation(step, metrics)
        return metrics

    def sample(self, step, state: states.TrainState):
        how = {**self.how_to_sample}
        how['num_samples'] = min(how['num_samples'], GRID_SAMPLES)
        batches = generate(self.model, state.sampling_params, self.mesh, **how)
        images = np.concatenate([imagefiles.to_uint8(batch) for batch in batches])
        if not distributed.is_main():
            return
        grid = imagefiles.image_grid(images)
        imagefiles.write_png(self.workdir / 'samples' / f'step_{step:07d}.png', grid)
        self.writer.image(step, 'samples', grid)

    def save(self, step, state: states.TrainState, metrics=None):
        self.checkpoints.save(step, state.to_items(), metrics)

    def say_goodbye(self, step) -> int:
        where = self.checkpoints.folder / str(step)
        if self.stop.agreed and step < self.total_steps:
            say(
                f'Stopped by {self.stop.agreed.name} at step {step}. It is saved in {where}; '
                'the same command goes on from there.'
            )
            return 128 + self.stop.agreed
        say(
            f'Trained to step {step}, saved in {where}. The best checkpoint by the test split is '
            f'that of step {self.checkpoints.best_step()}. Samples are in '
            f'{self.workdir / "samples"}.'
        )
        return 0


def say(text: str) -> None:
    """Prints a line, of the main process."""
    if distributed.is_main():
        print(text)
