"""The model card: what the model is, how to use it, and its scores, in Markdown."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tarflow_jax.errors import InputError
from tarflow_jax.flow import TarFlow
from tarflow_jax.flow.tarflow import count_parameters
from tarflow_jax.likelihood.noise import TypeAndStd
from tarflow_jax.parallel.fingerprints import digest
from tarflow_jax.workdir import read_evaluation

_TEXT = """---
library_name: tarflow_jax
pipeline_tag: unconditional-image-generation
tags:
- normalizing-flow
- tarflow
- jax
---

# {title}

A [TarFlow](https://arxiv.org/abs/2412.06329), a normalizing flow: it draws images of
{height}x{width} pixels with {channels}, and computes the likelihood of given ones.

```python
import tarflow_jax

flow = tarflow_jax.load(FOLDER)  # this one, or its name on the Hub, 'owner/name'
images = flow.sample(0, 16{denoise})
```

| | |
|---|---|
{rows}

## Scores

{scores}
"""


def write_card(
    title: str,
    model: TarFlow,
    params,
    config: ConfigDict,
    step: int | None = None,
    workdir: Path | None = None,
) -> str:
    """Returns the text of a card.

    Args:
      title: its heading.
      model: the flow.
      params: its parameters.
      config: what is known of its training, see `workdir.config_of`.
      step: its training step, if that is known.
      workdir: the workdir that it comes from, whose evaluation is reported.
    """
    noise = TypeAndStd(**config.noise) if 'noise' in config else None
    height, width, channels = model.image_shape
    rows = {
        'parameters': f'{count_parameters(params):,}, float32',
        'architecture': f'{model.num_blocks} blocks of {model.layers_per_block} layers, width '
        f'{model.width}, patches of {model.patch_size}x{model.patch_size} pixels',
        'classes': f'{model.num_classes}' if model.num_classes else 'none',
        'trained on': config.data.name if 'data' in config and config.data.name else 'unknown',
        'noise in training': _noise(noise),
    }
    if step:
        rows['training steps'] = f'{step:,}'
    removes_noise = noise is not None and noise.type == 'gaussian'
    return _TEXT.format(
        title=title,
        height=height,
        width=width,
        channels='one channel' if channels == 1 else f'{channels} channels',
        denoise=', denoise=True' if removes_noise else '',
        rows='\n'.join(f'| {name} | {value} |' for name, value in rows.items()),
        scores=scores(_evaluation_of(workdir), digest(params)),
    )


def _noise(noise: TypeAndStd | None) -> str:
    if noise is None:
        return 'unknown'
    is_uniform = noise.type == 'uniform'
    return 'uniform' if is_uniform else f'Gaussian, standard deviation {noise.std:g}'


def _evaluation_of(workdir: Path | None) -> dict[str, Any]:
    """The evaluation of a workdir; empty if there is none that can be read."""
    with contextlib.suppress(InputError):
        return read_evaluation(workdir) if workdir else {}
    return {}


def scores(evaluation: Mapping[str, Any], params_sha256: str) -> str:
    """The scores of an evaluation as a table, and how they were measured.

    Scores of other parameters are left out, whatever the workdir holds, and so are those of samples
    that came in a file.
    """
    if not evaluation:
        return 'It has not been evaluated.'
    if evaluation.get('params_sha256') != params_sha256:
        return 'The available evaluation is for other parameters; these have not been evaluated.'
    are_drawn = 'file' not in evaluation.get('samples', {})
    values = {
        name: value
        for name, value in evaluation.items()
        if isinstance(value, float) and (are_drawn or '/' in name)  # of a split
    }
    rows = [
        f'| {name} | {value:.4f}'
        + (f' ± {values[f"{name}_error"]:.4f} |' if f'{name}_error' in values else ' |')
        for name, value in values.items()
        if not name.endswith('_error')
    ]
    return '\n'.join(['| | |', '|---|---|', *rows, '', *_measured(evaluation)])


def _measured(evaluation: Mapping[str, Any]) -> list[str]:
    """How the scores were measured, a sentence for splits and one for samples."""
    sentences = []
    if splits := evaluation.get('splits'):
        numbers = ', '.join(f'{n:,} of {name}' for name, n in splits['num_images'].items())
        noise = TypeAndStd(**splits['noise'])
        sentences.append(
            f'Splits: every image once ({numbers}), labels given, with noise ({_noise(noise)}), '
            f'{splits["num_draws"]} draws, seed {splits["seed"]}, {splits["dtype"]}.'
        )
        if noise.type == 'gaussian':
            sentences.append('Bits per dimension under Gaussian noise are not a code length.')
    samples = evaluation.get('samples')
    if samples and 'file' not in samples:
        sentences.append(
            f'Samples: {samples["num_samples"]:,}, guidance {samples["guidance"]:g}, prior '
            f'temperature {samples["prior_temperature"]:g}, noise of {samples["denoise_std"]:g} '
            f'removed, seed {samples["seed"]}.'
        )
    sentences.append(f'By tarflow_jax {evaluation.get("version")}, {evaluation.get("date")}.')
    return sentences
