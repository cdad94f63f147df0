"""`--mode=evaluate`: from a config to figures, and to a file that tells what they are of."""

import hashlib
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


def evaluate(config, workdir: Path, checkpoint: str | None = None) -> None:
    """Computes `config.evaluate.metrics`, prints them and writes `workdir/evaluation.json`.

    Args:
      config: see `configs/base.py`.
      workdir: of a training run, whose newest checkpoint is evaluated unless another is given.
      checkpoint: see `tarflow_jax.load`.

    Raises:
      InputError: something was asked that cannot be; nothing was drawn and nothing written.
    """
    start = time.perf_counter()
    check_keys(config)
    names = metric_names(config)
    of_splits = [name for name in names if name in OF_SPLITS]
    of_samples = [name for name in names if name in OF_SAMPLES]
    subject = Subject(config, workdir)
    needs_params = of_splits or not config.evaluate.samples
    which = subject.load(checkpoint) if needs_params else {}
    parts: list[OfSplits | OfSamples] = [OfSplits(subject, of_splits)]
    if of_samples:
        parts.append(OfSamples(subject, of_samples))
    scores: dict[str, float] = {}
    with rules.on(subject.mesh):
        for part in parts:
            scores |= part.scores()
    if not distributed.is_main():
        return
    digest = hashlib.sha256(json_text(config.to_dict()).encode()).hexdigest()
    report = {**scores, 'version': tarflow_jax.__version__, 'config_sha256': digest, **which}
    for part in parts:
        report |= part.details()
    write_json(workdir / REPORT_FILE, report)
    for name, value in scores.items():
        print(f'{name:28} {value:.4f}')
    print(f'in {format_duration(time.perf_counter() - start)}: {workdir / REPORT_FILE}')


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
    if not split_names(asked.splits):
        raise InputError(
            'evaluate.splits must name a split of the data set, such as test; got none.'
        )
