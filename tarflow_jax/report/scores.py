"""The section of what was measured of a model, and how."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from tarflow_jax.errors import InputError
from tarflow_jax.report.page import Section, columns, details, missing, paragraph, table
from tarflow_jax.workdir import evaluated, read_evaluation

METRICS = {
    'nats_per_dim': 'negative log-likelihood, nats per dimension',
    'bits_per_dim': 'negative log-likelihood, bits per dimension',
    'iw_bits_per_dim': 'importance-weighted bound, bits per dimension',
    'accuracy': 'accuracy of Bayes’ classifier p(label given image)',
    'cross_entropy': 'cross-entropy of Bayes’ classifier, nats',
    'fid': 'Fréchet Inception distance',
    'sfid': 'its variant with spatial features',
    'inception_score': 'Inception score',
    'precision': 'precision of Inception’s features',
    'recall': 'recall of Inception’s features',
    'haar_frechet': 'Fréchet distance of Haar features',
    'haar_precision': 'precision of Haar features',
    'haar_recall': 'recall of Haar features',
}


# Those at the top of the page: the metric, its short name, and its format.
_LEADING = (
    ('nats_per_dim', 'nats per dimension', '.3f'),
    ('fid', 'FID', '.2f'),
    ('accuracy', 'accuracy', '.1%'),
)


def leading(workdir: Path, params_sha256: str | None) -> list[tuple[str, str]]:
    """Names and values of the scores at the top of the page, as far as there are any.

    They are of the parameters with that hash, of the first split that was scored, and of samples
    that were drawn.
    """
    with contextlib.suppress(InputError):
        report = read_evaluation(workdir)
        if params_sha256 is None or report.get('params_sha256') != params_sha256:
            return []
        values: dict[str, Any] = {}
        for name, value in report.items():
            if '/' in name or 'file' not in report.get('samples', {}):
                values.setdefault(name.rpartition('/')[2], value)
        return [
            (title, f'{values[name]:{form}}'.replace('-', '−'))
            for name, title, form in _LEADING
            if isinstance(values.get(name), float)
        ]
    return []


def scores(workdir: Path, evaluate: str, why_not: str = '') -> Section:
    """The evaluation, and how it was made.

    Args:
      workdir: the folder of the run.
      evaluate: the command that makes an evaluation; '' if none can be made.
      why_not: why not.
    """
    try:
        report = read_evaluation(workdir)
    except InputError as error:
        return Section('Scores', [missing(str(error), evaluate)])
    names = [name for name in report if name.rpartition('/')[2] in METRICS]
    if not names:
        words = f'This model was not evaluated. {why_not}'.strip()
        return Section('Scores', [missing(words, evaluate)])
    about = flatten_dict({key: value for key, value in report.items() if key not in names}, sep='.')
    settings = table((name, str(value)) for name, value in about.items() if '_error' not in name)
    sources = dict.fromkeys(_source(report, name) for name in names)
    noise = report.get('splits', {}).get('noise', {}).get('type')
    parts = [
        paragraph(f'Of {evaluated(report)}, {_day(report)}.'),
        columns(*(_group(report, source, names) for source in sources)),
    ]
    if noise == 'gaussian' and any('bits_per_dim' in name for name in names):
        words = (
            'Under Gaussian noise, bits per dimension are a rescaled density, not a code length.'
        )
        parts.append(paragraph(words))
    parts += [paragraph(str(words)) for words in report.get('samples', {}).get('warnings', [])]
    parts.append(details('All settings of the evaluation', settings))
    if report.get('unfinished'):
        words = f'Not yet computed: {", ".join(report["unfinished"])}. The same command resumes.'
        parts.append(missing(words, report.get('command') or evaluate))
    return Section('Scores', parts)


def _group(report: Mapping, source: str, names: Sequence[str]) -> str:
    """The scores that were measured on the same images."""
    rows = [
        (METRICS[name.rpartition('/')[2]], _score(report, name))
        for name in names
        if _source(report, name) == source
    ]
    return table(rows, (source, ''))


def _score(report: Mapping, name: str) -> str:
    value, error = report[name], report.get(f'{name}_error')
    if value is None:
        return 'not finite'
    text = f'{value:.4f}' + (f'\u00a0±\u00a0{error:.4f}' if error else '')
    return text.replace('-', '−')


def _source(report: Mapping, name: str) -> str:
    """On what a score was measured, in words."""
    split, _, _ = name.rpartition('/')
    if split:
        about = report.get('splits', {})
        images = about.get('num_images', {}).get(split)
        draws = about.get('num_draws', 1)
        noise = f', {draws} draws of noise each' if draws > 1 else ''
        return f'{images} images of {about.get("dataset")}, {split} split{noise}'
    about = report.get('samples', {})
    family = 'haar' if name.startswith('haar') else 'inception'
    reference = about.get('references', {}).get(family, {})
    against = (
        f' against {reference["dataset"]}, {reference.get("split")} split'
        if 'dataset' in reference
        else ''
    )
    source = 'given' if 'file' in about else f'guidance {about.get("guidance", 0):g}'
    return f'{about.get("num_samples"):,} samples ({source}){against}'


def _day(report: Mapping) -> str:
    return f'on {str(report.get("date"))[:10]} by version {report.get("version")}'
