"""The metrics of a training run as curves."""

from collections.abc import Mapping, Sequence

import numpy as np

from tarflow_jax.errors import InputError
from tarflow_jax.pictures.picture import FAINT, VERMILION, Picture, house_style, panels

# Under the losses: the metric and what it is called.
_BELOW = (
    ('train/grad_norm', 'gradient norm'),
    ('train/learning_rate', 'learning rate'),
    ('train/images_per_second', 'images per second'),
)
_LOSSES = 'train/loss', 'test/nats_per_dim'
_USUAL = 0.94  # quantile of the losses above which the first ones leave the picture


@house_style
def training_curves(records: Sequence[Mapping]) -> Picture:
    """Losses of training and test images, gradient norm, learning rate and speed, by step.

    Args:
      records: the lines of a `metrics.jsonl`, as `training.metrics_writer.read_metrics` gives them.

    Raises:
      InputError: there is no loss among them.
    """
    losses = {name: _series(records, name) for name in _LOSSES}
    values = np.concatenate([values for _, values in losses.values()])
    if not np.isfinite(values).any():
        raise InputError('the records have neither a train/loss nor a test/nats_per_dim.')
    below = [metric for metric in _BELOW if _series(records, metric[0])[0].size]
    picture, axes = panels(2.6, *(1.2 for _ in below), share_x=True)
    _draw_losses(axes[0], losses, values[np.isfinite(values)])
    for panel, (name, title) in zip(axes[1:], below, strict=True):
        steps, values = _series(records, name)
        panel.plot(steps, values, linewidth=1.2)
        usual = np.nanquantile(values, 0.98) if np.isfinite(values).any() else 1.0
        panel.set(title=title, ylim=(0, 1.3 * usual or None))
    axes[-1].set(xlabel='step')
    return picture


def _draw_losses(panel, losses, values) -> None:
    train, test = losses.values()
    if train[0].size:
        panel.plot(*train, label='training images')
    if test[0].size:
        panel.plot(*test, 'o-', color=VERMILION, label='test images', markersize=5)
        if np.isfinite(test[1]).any():
            panel.axhline(np.nanmin(test[1]), color=FAINT, linestyle=':', linewidth=1)
    low, high = values.min(), np.quantile(values, _USUAL)
    margin = 0.06 * (high - low or 1.0)
    panel.set(title='nats per dimension', ylim=(low - margin, high + margin))
    panel.legend(loc='upper right')


def _series(records: Sequence[Mapping], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps and values of a metric, NaN where it was not finite."""
    points = [(record['step'], record[name]) for record in records if name in record]
    values = [np.nan if value is None else value for _, value in points]
    return np.array([step for step, _ in points]), np.array(values, np.float64)
