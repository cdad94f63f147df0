"""What a run does with a state that it has saved: score it, and draw a grid of samples."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from tarflow_jax import imagefiles
from tarflow_jax.build import Experiment
from tarflow_jax.likelihood.scores import as_scored, score_split
from tarflow_jax.parallel import distributed
from tarflow_jax.progress import Progress
from tarflow_jax.sampling import write
from tarflow_jax.sampling.batches import host_images, sample_batches
from tarflow_jax.stopping import Stop, Stopped
from tarflow_jax.training.checkpoint import SCORES, Checkpoints
from tarflow_jax.training.metrics_writer import MetricsWriter
from tarflow_jax.training.state import TrainState


class Milestones:
    """The steps at which a run saves, scores and samples.

    Args:
      experiment: the experiment to train.
      workdir: the folder of the run.
      checkpoints: the checkpoints in it, which scores are attached to.
      test_split: the split to score.
      total_steps: the last step, at which everything is due.
      stop: receives the signals, which end scores and samples: they are done when the run
        resumes.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        checkpoints: Checkpoints,
        test_split,
        total_steps: int,
        stop: Stop,
    ):
        self._experiment = experiment
        self._workdir = workdir
        self._checkpoints = checkpoints
        self._test_split = test_split
        self._total_steps = total_steps
        self._stop = stop

    def due(self, step: int) -> list[str]:
        """Returns which of 'checkpoint', 'evaluate' and 'sample' a step is for."""
        settings = self._experiment.config.train
        parts = ('checkpoint', 'evaluate', 'sample')
        last = step == self._total_steps
        return [part for part in parts if last or step % settings[f'{part}_every'] == 0]

    def unfinished(self, step: int) -> list[str]:
        """Returns which of 'evaluate' and 'sample' an interrupted run has left of a saved step."""
        due = self.due(step) if step else []
        parts = []
        if 'evaluate' in due and self._checkpoints.scores(step) is None:
            parts.append('evaluate')
        if 'sample' in due and not distributed.broadcast_from_main(self._picture(step).exists()):
            parts.append('sample')
        return parts

    def reach(
        self,
        step: int,
        state: TrainState,
        parts: list[str],
        writer: MetricsWriter,
        progress: Progress,
    ) -> None:
        """Scores and samples a state that is saved, as far as `parts` says, until a signal."""
        with contextlib.suppress(Stopped):
            if 'evaluate' in parts:
                self._evaluate(step, state, writer, progress)
            if 'sample' in parts:
                self._sample(step, state, writer)

    def _evaluate(self, step, state: TrainState, writer, progress) -> None:
        config = self._experiment.config
        scores = score_split(
            as_scored(self._experiment.model),
            state.sampling_params,
            self._test_split,
            self._experiment.noise,
            self._experiment.mesh,
            batch_size=config.evaluate.batch_size,
            num_draws=config.train.evaluate_draws,
            seed=config.evaluate.seed,
            before_batch=self._stop.check,
        )
        metrics = {f'{SCORES}{name}': scores[name] for name in ('nats_per_dim', 'bits_per_dim')}
        writer.scalars(step, metrics)
        self._checkpoints.attach(step, metrics)  # last: it says that this part is done
        progress.print_line(
            f'step {step}  test {scores["nats_per_dim"]:.4f} nats/dim  '
            f'{scores["bits_per_dim"]:.4f} bits/dim'
        )

    def _sample(self, step, state: TrainState, writer) -> None:
        experiment = self._experiment
        sampling: dict[str, Any] = {**experiment.sampling, 'before_batch': self._stop.check}
        sampling['num_samples'] = min(sampling['num_samples'], write.GRID_SAMPLES)
        sampling |= dict(max_draws=1, certify=False)  # a grid shows the samples as they come
        batches = sample_batches(
            experiment.model, state.sampling_params, experiment.mesh, **sampling
        )
        images = np.concatenate([imagefiles.to_uint8(host_images(batch)) for batch in batches])
        if not distributed.is_main():
            return
        grid = write.grid(images, sampling, experiment.model, experiment.class_names)
        writer.image(step, 'samples', grid)
        imagefiles.write_png(self._picture(step), grid)

    def _picture(self, step: int) -> Path:
        return self._workdir / 'samples' / f'step_{step:07d}.png'


def grid_of(split, experiment: Experiment) -> np.ndarray:
    """A grid of some images of a split, from its beginning to its end, as large as one of samples.

    Args:
      split: of the experiment's data set.
      experiment: see `build.Experiment`.
    """
    most = min(experiment.sampling['num_samples'], write.GRID_SAMPLES)
    index = np.unique(np.linspace(0, len(split) - 1, most).astype(int))
    levels = split.__getitems__(index)['image'].astype(np.float32)
    pixels = 2 * levels / (experiment.dataset.num_levels - 1) - 1
    return imagefiles.image_grid(imagefiles.to_uint8(pixels))
