"""`--mode=evaluate`: computes the scores of an experiment, and writes them with their settings."""

import datetime
import functools
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging

import tarflow_jax
from tarflow_jax import loading
from tarflow_jax.build import Experiment
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation import sample_scores, split_scores
from tarflow_jax.evaluation.features import QUANTIZATIONS
from tarflow_jax.evaluation.metrics import (
    SAMPLE_METRICS,
    SPLIT_METRICS,
    evaluated_splits,
    metric_names,
)
from tarflow_jax.evaluation.sample_scores import SampleScores
from tarflow_jax.files import json_text, make_writable, remove_unfinished, write_json
from tarflow_jax.parallel import distributed, rules
from tarflow_jax.parallel.fingerprints import digest
from tarflow_jax.quantities import format_duration
from tarflow_jax.sampling.calibration_file import find_calibration
from tarflow_jax.stopping import Stop
from tarflow_jax.values import Choice
from tarflow_jax.workdir import (
    EVALUATION_FILE,
    checkpoint_or_workdir,
    read_evaluation,
    workdir_of,
)

HISTORY_FILE = 'evaluations.jsonl'  # earlier evaluations
_UNFINISHED = 'unfinished'  # a key of the report: metrics still to come
_IDENTITY_KEYS = ('version', 'config_sha256', 'params_sha256')  # keys of what the scores depend on


def evaluate(
    experiment: Experiment,
    workdir: Path,
    checkpoint: str | None,
    stop: Stop,
    *,
    command: str = '',
) -> None:
    """Computes `config.evaluate.metrics`, prints them and writes `workdir/evaluation.json`.

    Scores and samples of an interrupted evaluation are reused, if it had the same parameters and
    config.

    Args:
      experiment: see `build.Experiment`.
      workdir: the folder of a run, whose newest checkpoint is evaluated unless another is given.
      checkpoint: see `tarflow_jax.load`.
      stop: receives the signals.
      command: what resumes or repeats the evaluation; it stands in its report.

    Raises:
      InputError: the config makes no sense; nothing was drawn, and nothing written but reference
        statistics.
    """
    start = time.perf_counter()
    config = experiment.config
    check_settings(config)
    names = metric_names(config)
    split_metrics = [name for name in names if name in SPLIT_METRICS]
    sample_metrics = [name for name in names if name in SAMPLE_METRICS]
    params, identity = None, dict[str, Any]()
    if split_metrics or not config.evaluate.samples:
        params, identity = _load(experiment, checkpoint_or_workdir(workdir, checkpoint))
    if distributed.is_main():
        prepare_workdir(workdir)
    if split_metrics:
        split_scores.check(experiment, split_metrics)
    samples = None
    if sample_metrics:
        params_sha256 = identity.get('params_sha256')
        calibration = None
        if not config.evaluate.samples:
            folders = [workdir, workdir_of(Path(identity['checkpoint']))]
            sampling = {**experiment.sampling, 'num_samples': config.evaluate.num_samples}
            calibration = find_calibration(
                folders, experiment.model, params, experiment.mesh, sampling
            )
        samples = SampleScores(
            *(experiment, params, params_sha256, calibration, workdir, stop, sample_metrics)
        )
        with rules.activation_sharding(experiment.mesh):
            samples.prepare()
    about = {
        'version': tarflow_jax.__version__,
        'command': command,
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'config_sha256': hashlib.sha256(json_text(config.to_dict()).encode()).hexdigest(),
        **identity,
    }
    done = distributed.broadcast_from_main(
        _resume_scores(workdir, about) if distributed.is_main() else None
    )
    scores = {key: math.nan if value is None else value for key, value in done.items()}
    splits = evaluated_splits(config) if split_metrics else []
    wanted = [f'{split}/{name}' for split in splits for name in split_metrics] + sample_metrics

    def write(values: dict[str, float], details: Callable) -> None:
        """Adds scores to the report, with what was scored; prints them."""
        if distributed.is_main():
            scores.update(values)
            about.update(details())
            unfinished = [name for name in wanted if name not in scores]
            still = {_UNFINISHED: unfinished} if unfinished else {}
            write_json(workdir / EVALUATION_FILE, {**scores, **about, **still})
            for name, value in values.items():
                print(f'{name:32} {value:.4f}', flush=True)

    with rules.activation_sharding(experiment.mesh):
        for split in splits:
            values = {
                key: value for key, value in scores.items() if key.rpartition('/')[0] == split
            } or split_scores.score(split, experiment, params, stop, split_metrics)
            # Written before the other splits and the samples, which may take hours, and be stopped.
            write(values, functools.partial(split_scores.details, experiment))
        if samples:
            write(samples.scores(), samples.details)
            samples.finish()
    if distributed.is_main():
        print(f'in {format_duration(time.perf_counter() - start)}: {workdir / EVALUATION_FILE}')


def _load(experiment: Experiment, source) -> tuple[Any, dict[str, Any]]:
    """The parameters at a source, and what identifies them: checkpoint, step, params_sha256."""
    params, step = loading.load_params(experiment, source)
    loading.warn_of_noise_mismatch(experiment.config, source)
    return params, {'checkpoint': str(source), 'step': step, 'params_sha256': digest(params)}


def prepare_workdir(workdir: Path) -> None:
    """Makes sure, before anything is computed, that an evaluation can be written.

    Raises:
      InputError: the workdir cannot be written to, or holds a damaged evaluation.
    """
    make_writable(workdir)
    remove_unfinished(workdir)
    read_evaluation(workdir)


def _resume_scores(workdir: Path, about: dict[str, Any]) -> dict[str, float]:
    """The scores of this evaluation if it was interrupted; any other goes into the history."""
    if not (last := read_evaluation(workdir)):
        return {}
    if last.get(_UNFINISHED):
        changed = [key for key in _IDENTITY_KEYS if last.get(key) != about.get(key)]
        if not changed:
            return {key: value for key, value in last.items() if '/' in key}
        logging.warning(
            'The scores of the interrupted evaluation in %s are computed again: %s changed.',
            *(workdir / EVALUATION_FILE, ', '.join(changed)),
        )
    _append_once(workdir / HISTORY_FILE, json_text(last))
    return {}


def _append_once(path: Path, line: str) -> None:
    """Appends a line, unless it is the last one already; a truncated last line is ended first."""
    content = path.read_bytes() if path.exists() else b''
    if content.splitlines()[-1:] == [line.encode()]:
        return
    was_cut = content and not content.endswith(b'\n')
    with open(path, 'ab') as file:
        file.write((b'\n' if was_cut else b'') + line.encode() + b'\n')


def check(experiment: Experiment) -> None:
    """Raises InputError if a trained model could not be evaluated as its config says."""
    check_settings(experiment.config)
    names = metric_names(experiment.config)
    if chosen := [name for name in names if name in SPLIT_METRICS]:
        split_scores.check(experiment, chosen)
    if chosen := [name for name in names if name in SAMPLE_METRICS]:
        sample_scores.check(experiment, chosen)


def check_settings(config) -> None:
    """Raises InputError for values under which an evaluation makes no sense."""
    settings = config.evaluate
    names = metric_names(config)
    Choice(QUANTIZATIONS).check('evaluate.quantization', settings.quantization)
    if 'iw_bits_per_dim' in names and config.noise.type != 'uniform':
        raise InputError(
            'evaluate.metrics names iw_bits_per_dim, a bound on the code length of 8-bit images, '
            f"which needs noise.type='uniform'; this model has {config.noise.type!r}. Take it out."
        )
    if settings.samples and not any(name in SAMPLE_METRICS for name in names):
        raise InputError(
            'evaluate.samples is given, and evaluate.metrics names no metric of samples, such as '
            'fid. Name one, or take it out.'
        )
