"""Guidance of the inverse: pushes each affine map away from the prediction of an unguided pass.

The unguided pass has no label, and may divide its attention logits by a temperature, which guides
models without classes as well (paper, section 3.5):

    shift     <- shift     + w_t (shift     - unguided shift)
    log_scale <- log_scale + w_t (log_scale - unguided log_scale)

Both passes run as one batch of twice the size.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tarflow_jax.errors import InputError
from tarflow_jax.values import Boolean, Choice, Float

GUIDANCE_KEYS = ('guidance', 'guide', 'anneal_guidance', 'attention_temperature')
GUIDED_PARTS = {'both': ('shift', 'log_scale'), 'scale': ('log_scale',), 'shift': ('shift',)}
WEIGHT = Float(0, 1000)  # the paper's are below 4
GUIDE = Choice(tuple(GUIDED_PARTS))
ATTENTION_TEMPERATURE = Float(0, 1000, exclude_low=True)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['weight', 'attention_temperature'],
    meta_fields=['guided', 'anneal', 'active'],
)
@dataclasses.dataclass(frozen=True)
class Guidance:
    """Settings of the guidance; a pytree, so that a new weight or temperature needs no compilation.

    By default there is no guidance.

    Attributes:
      weight: w, at least 0.
      attention_temperature: divides the attention logits of the unguided pass.
      guided: the guided part of the affine map, 'both', 'scale' or 'shift'.
      anneal: whether the weight grows linearly over a block's tokens, w_t = w t / (T - 1).
      active: whether there is an unguided pass.
    """

    weight: float | jax.Array = 0.0
    attention_temperature: float | jax.Array = 1.0
    guided: str = 'both'
    anneal: bool = False
    active: bool = False

    @classmethod
    def checked(
        cls,
        num_classes: int,
        *,
        guidance=0.0,
        guide='both',
        anneal_guidance=False,
        attention_temperature=1.0,
    ) -> 'Guidance':
        """Guidance of a model with `num_classes`; guidance without any effect is refused.

        The other arguments are those of `sample`.
        """
        weight = WEIGHT.check('guidance', guidance)
        GUIDE.check('guide', guide)
        anneal = Boolean().check('anneal_guidance', anneal_guidance)
        temperature = ATTENTION_TEMPERATURE.check('attention_temperature', attention_temperature)
        checked = cls(weight, temperature, guide, anneal, active=weight > 0)
        if not num_classes:
            checked._check_effect('the model has no classes')
        return checked

    def check_labels(self, labels, num_classes: int) -> None:
        """Raises InputError if guidance changes nothing: all labels are -1, or of a single class.

        Without a label, a model takes the mean of its classes.
        """
        if num_classes == 1:
            self._check_effect('the model has one class')
        if (np.asarray(labels) < 0).all():
            self._check_effect('no image has a label')

    def _check_effect(self, reason: str) -> None:
        if self.active and self.attention_temperature == 1:
            raise InputError(
                f'guidance={self.weight} would change nothing: {reason}, and at '
                'attention_temperature=1 the unguided pass equals the guided one. Set another '
                'attention_temperature (0.3 to 1.5 are usual), or guidance=0.'
            )

    def double(self, x, unguided):
        """Interleaves rows of the guided pass with rows of the unguided pass; `x` without guidance.

        Both rows of a sample stay on the device of a batch that is split over devices.
        """
        if not self.active:
            return x
        return jnp.stack([x, unguided], axis=1).reshape(2 * len(x), *x.shape[1:])

    @jax.named_scope('guidance')
    def combine(self, affine, position_T1, num_tokens):
        """Guides (shift, log_scale) [B, T, P] of `position + 1`; inverts `double` on the batch."""
        if not self.active:
            return affine
        weight = self.weight
        if self.anneal:
            weight = (weight * (position_T1 + 1) / (num_tokens - 1))[None]

        def extrapolate(part, doubled):
            pairs = doubled.reshape(len(doubled) // 2, 2, *doubled.shape[1:])
            guided, unguided = pairs[:, 0], pairs[:, 1]
            is_guided = part in GUIDED_PARTS[self.guided]
            return guided + weight * (guided - unguided) if is_guided else guided

        shift, log_scale = affine
        return extrapolate('shift', shift), extrapolate('log_scale', log_scale)


NO_GUIDANCE = Guidance()
