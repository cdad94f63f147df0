"""`--mode=info`: describes an experiment or a workdir. It only reads, and computes nothing."""

import contextlib
import math
from pathlib import Path
from typing import Any

import jax

from tarflow_jax import keys
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation.metrics import METRICS
from tarflow_jax.flow import TarFlow
from tarflow_jax.flow.conditioner import TransformerLayer
from tarflow_jax.flow.patches import grid_shape
from tarflow_jax.flow.tarflow import count_parameters
from tarflow_jax.planning.flops import forward_flops, train_flops
from tarflow_jax.quantities import format_bytes, format_count
from tarflow_jax.sampling import calibration_file
from tarflow_jax.sharing.pretrained import WEIGHTS_FILE, is_pretrained
from tarflow_jax.training.checkpoint import (
    BEST_METRIC,
    SCORES,
    Checkpoints,
    newest_and_best,
    quiet_orbax,
)
from tarflow_jax.workdir import (
    CONFIG_FILE,
    converted_from,
    evaluated,
    read_config,
    read_evaluation,
)

FLOAT32, BFLOAT16 = 4, 2  # bytes


def show(config, workdir: Path | None) -> None:
    """Prints the summary of a config, and of the workdir if one is given.

    Raises:
      InputError: a value of the config is not one that its key may have.
    """
    jax.config.update('jax_platforms', 'cpu')  # an accelerator may be busy, and is not needed
    quiet_orbax()
    keys.check(config)
    facts = describe_model(config) | describe_training(config)
    if workdir:
        facts |= describe_unrecorded(config, workdir) | describe_workdir(workdir)
    for name, text in facts.items():
        print(f'{name:12} {text}'.replace('\n', f'\n{"":13}'))


def describe_model(config) -> dict[str, str]:
    """The model, its parameters, and what an image costs."""
    attributes: dict[str, Any] = {**config.model, 'attention': 'xla'}
    model = TarFlow(**attributes)
    height, width, channels = model.image_shape
    tokens = math.prod(grid_shape(model.image_shape, model.patch_size))
    features = math.prod(model.image_shape) // tokens
    layers = format_count(model.layers_per_block, 'layer')
    heads = format_count(model.width // model.head_dim, 'head')
    hidden = TransformerLayer.mlp_expansion * model.width
    scales = 'shifts only' if model.volume_preserving else 'shifts and scales'
    classes = f', {model.num_classes} classes' if model.num_classes else ', no classes'
    count = count_parameters(model.param_shapes())
    return {
        'images': f'{height}x{width} pixels of {format_count(channels, "channel")}{classes}',
        'tokens': f'{tokens} of {features} numbers, patches of {model.patch_size}x'
        f'{model.patch_size} pixels',
        'flow': f'{model.num_blocks} blocks in alternating order, each of {layers}: {scales}\n'
        f'a layer: width {model.width}, {heads} of {model.head_dim}, MLP of {hidden}, in '
        f'{model.dtype}',
        'parameters': f'{count:,}, {format_bytes(FLOAT32 * count)}',
        'memory': _memory(config, count),
        'FLOPs': f'{forward_flops(model):.3g} in a forward pass, {train_flops(model):.3g} in a '
        'training step, per image',
    }


def _memory(config, count: int) -> str:
    """Describes the memory of a train state, without gradients and activations."""
    first_moment = BFLOAT16 if config.optimizer.first_moment_dtype == 'bfloat16' else FLOAT32
    average = FLOAT32 if config.train.ema_decay else 0
    state = count * (FLOAT32 + first_moment + FLOAT32 + average)
    parts = 'parameters, two moments' + (', a moving average' if average else '')
    return (
        f'{format_bytes(state)} in training ({parts}),\nbesides gradients and activations '
        '(see --mode=plan)'
    )


def describe_training(config) -> dict[str, str]:
    """What is learned, and for how long."""
    average = f', moving average {config.train.ema_decay:g}' if config.train.ema_decay else ''
    return {
        'data': f'{config.data.name or "unnamed"}, {config.data.train_split} and '
        f'{config.data.test_split}, in {config.data.dir}',
        'noise': describe_noise(config),
        'training': f'{config.train.num_epochs:g} epochs in batches of {config.train.batch_size}, '
        f'learning rate {config.optimizer.peak_learning_rate:g}{average}',
        'sampling': f'guidance {config.sample.guidance:g}, '
        f'{"with" if config.sample.denoise else "without"} denoising',
    }


def describe_noise(config) -> str:
    """The noise on the images that a model learns."""
    size = f'{config.noise.std:g}' if config.noise.type == 'gaussian' else 'dequantisation'
    return f'{config.noise.type} {size}'


def describe_unrecorded(config, workdir: Path) -> dict[str, str]:
    """What is said in the place of keys that the config of a model from elsewhere does not have."""
    if not (workdir / CONFIG_FILE).is_file():
        return {}
    recorded, facts = keys.flatten(read_config(workdir)), {}
    if 'data.train_split' not in recorded:
        facts['data'] = config.data.name or 'unnamed'
    if 'noise.std' not in recorded:
        facts['noise'] = f'not recorded; {describe_noise(config)} is assumed'
    if 'train.num_epochs' not in recorded:
        file = converted_from(workdir)
        facts['training'] = f'that of {file}' if file else 'elsewhere, and not recorded'
    return facts


def has_model(workdir: Path) -> bool:
    """Whether a folder has parameters to sample with."""
    return is_pretrained(workdir) or newest_and_best(workdir)[0] is not None


def describe_workdir(workdir: Path) -> dict[str, str]:
    """The progress of a run, and what is known about it."""
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        steps = checkpoints.steps()
        best = checkpoints.best_step()
        scores = {step: checkpoints.scores(step) or {} for step in steps}
    return {
        'workdir': str(workdir),
        'checkpoints': '\n'.join(_checkpoint(step, scores[step], best) for step in steps)
        or (WEIGHTS_FILE if is_pretrained(workdir) else 'none'),
        'evaluation': _evaluation(workdir),
        'calibration': _calibration(workdir / 'calibration.npz'),
    }


def _checkpoint(step: int, scores: dict[str, float], best: int | None) -> str:
    named = {name.removeprefix(SCORES): value for name, value in scores.items()}
    words = [f'{value:.4f} {name.replace("_per_", "/")}' for name, value in named.items()]
    where = f'  test {", ".join(words)}' if BEST_METRIC in scores else ''
    return f'step {step}{where}{"  (best)" if step == best else ""}'


def _evaluation(workdir: Path) -> str:
    try:
        report = read_evaluation(workdir)
    except InputError as error:
        return str(error)
    if not report:
        return 'none yet (--mode=evaluate)'
    scores = {k: v for k, v in report.items() if k.rpartition('/')[2] in METRICS}
    lines = [
        f'{name} {f"{value:.4f}" if isinstance(value, int | float) else "not finite"}'
        for name, value in scores.items()
    ]
    if remaining := report.get('unfinished'):
        lines.append(f'stopped before {", ".join(remaining)}: the same command resumes')
    return '\n'.join([f'of {evaluated(report)}, {report.get("date")}', *lines])


def _calibration(path: Path) -> str:
    try:
        _, reports, identity = calibration_file.read(path)
    except FileNotFoundError:
        return 'none (--mode=calibrate): samples are drawn token by token'
    except InputError as error:
        return str(error)
    windows = [report.window for report in reports]
    return f'windows {windows} for {identity.get("device")}, {identity.get("batch_size")} at a time'
