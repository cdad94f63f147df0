"""`--mode=evaluate`: from a config to figures, and to a file that tells what they are of."""

import hashlib
import json
import os
import time
from pathlib import Path

import tarflow_jax
from tarflow_jax import experiment
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation.features import QUANTIZATIONS
from tarflow_jax.evaluation.metrics import OF_SAMPLES, OF_SPLITS, metric_names, split_names
from tarflow_jax.evaluation.of_samples import OfSamples
from tarflow_jax.evaluation.of_splits import OfSplits
from tarflow_jax.evaluation.subject import Subject
from tarflow_jax.files import json_text, write_json
from tarflow_jax.parallel import distributed, rules
from tarflow_jax.quantities import format_duration
from tarflow_jax.sampling.generate import LABELS

REPORT_FILE = 'evaluation.json'
HISTORY_FILE = 'evaluations.jsonl'  # those before


def evaluate(config, workdir: Path, checkpoint: str | None = None) -> None:
    """Computes `config.evaluate.metrics`, prints them and writes `workdir/evaluation.json`.

    Args:
      config: see `configs/base.py`.
      workdir: of a training run, whose newest checkpoint is evaluated unless another is given.
      checkpoint: see `tarflow_jax.load`.

    Raises:
      InputError: something was asked that cannot be; nothing was drawn, and nothing written but
        reference statistics.
    """
    start = time.perf_counter()
    check_keys(config)
    names = metric_names(config)
    of_splits = [name for name in names if name in OF_SPLITS]
    of_samples = [name for name in names if name in OF_SAMPLES]
    subject = Subject(config, workdir)
    needs_params = of_splits or not config.evaluate.samples
    which = subject.load(checkpoint) if needs_params else {}
    parts: list[OfSplits | OfSamples] = []
    if of_splits:
        parts.append(OfSplits(subject, of_splits))
    if of_samples:
        parts.append(OfSamples(subject, of_samples))
    digest = hashlib.sha256(json_text(config.to_dict()).encode()).hexdigest()
    about = {'version': tarflow_jax.__version__, 'config_sha256': digest, **which}
    if distributed.is_main():
        keep_previous(workdir)
    scores: dict[str, float] = {}
    for part in parts:
        with rules.on(subject.mesh):
            found = part.scores()
        if distributed.is_main():
            scores |= found
            about |= part.details()
            # After each part: the next one may take hours, and be stopped.
            write_json(workdir / REPORT_FILE, {**scores, **about})
            for name, value in found.items():
                print(f'{name:32} {value:.4f}', flush=True)
    if distributed.is_main():
        print(f'in {format_duration(time.perf_counter() - start)}: {workdir / REPORT_FILE}')


def keep_previous(workdir: Path) -> None:
    """Adds the last evaluation to the lines of `evaluations.jsonl`, so that none is lost.

    Raises:
      InputError: the workdir cannot be written to, which had better be known now.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not os.access(workdir, os.W_OK):
            raise PermissionError('no permission to write')
        if (workdir / REPORT_FILE).exists():
            last = json.loads((workdir / REPORT_FILE).read_text())
            with open(workdir / HISTORY_FILE, 'a', encoding='utf-8') as history:
                history.write(json_text(last) + '\n')
    except (OSError, ValueError) as error:
        raise InputError(
            f'an evaluation cannot be written to {workdir} ({error}): give a --workdir that is a '
            f'folder in which you may write, without a damaged {REPORT_FILE}.'
        ) from error


def check_keys(config) -> None:
    """Raises InputError for values under which an evaluation makes no sense."""
    asked = config.evaluate
    names = metric_names(config)
    experiment.check_at_least_one(config, 'evaluate', 'batch_size', 'num_draws', 'num_samples')
    for key, allowed in ('labels', LABELS), ('quantization', QUANTIZATIONS):
        if asked[key] not in allowed:
            raise InputError(
                f'evaluate.{key} must be one of {", ".join(allowed)}; got {asked[key]!r}.'
            )
    if 'iw_bits_per_dim' in names and config.noise.type != 'uniform':
        raise InputError(
            'evaluate.metrics names iw_bits_per_dim, a bound on the code length of 8-bit images, '
            f"which takes noise.type='uniform'; this model has {config.noise.type!r}. Take it out."
        )
    if asked.samples and not any(name in OF_SAMPLES for name in names):
        raise InputError(
            'evaluate.samples is given, and evaluate.metrics names no metric of samples, such as '
            'fid. Name one, or take it out.'
        )
    if any(name in OF_SPLITS for name in names) and not split_names(asked.splits):
        raise InputError(
            'evaluate.splits must name a split of the data set, such as test; got none.'
        )
