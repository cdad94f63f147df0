"""Images from noise."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tarflow_jax.errors import InputError
from tarflow_jax.flow.inputs import as_batch, as_labels
from tarflow_jax.flow.tarflow import TarFlow, check_params
from tarflow_jax.sampling.guidance import Guidance
from tarflow_jax.sampling.inverse import inverse
from tarflow_jax.sampling.parallel import WINDOW, Calibration
from tarflow_jax.values import Boolean, Choice, Float, Integer, raise_invalid

PRIOR_TEMPERATURE = Float(0, 100)
METHOD = Choice(('auto', 'sequential', 'parallel'))
TOLERANCE = Float(0, 1)


def sample(
    model: TarFlow,
    params,
    noise,
    labels=None,
    *,
    guidance: float = 0.0,
    guide: str = 'both',
    anneal_guidance: bool = False,
    attention_temperature: float = 1.0,
    prior_temperature: float = 1.0,
    method: str = 'auto',
    tolerance: float = 1e-3,
    calibration: Calibration | None = None,
    return_sequence: bool = False,
    return_residual: bool = False,
    return_resolved: bool = False,
) -> Any:
    """Maps standard normal noise to images.

    Args:
      model: the flow.
      params: its parameters.
      noise: float [B, H, W, C], standard normal. It is scaled by prior_temperature and, for a
        volume-preserving model, by the standard deviation of its prior. Without guidance, the
        result is the image whose latents are the scaled noise.
      labels: int [B], -1 for no label; None for no labels.
      guidance: weight of the guidance, 0 (none) to 1000; above 0, sampling costs twice as much.
      guide: the guided part of the affine maps, 'both', 'scale' or 'shift'.
      anneal_guidance: whether the weight grows linearly over the tokens of each block.
      attention_temperature: temperature of the unguided pass's attention; guides without classes.
      prior_temperature: standard deviation of the prior relative to the trained one, 0 to 100.
      method: 'sequential' solves blocks token by token; 'parallel' as fixed points, see `parallel`;
        'auto' uses the windows of the calibration, or is sequential without a calibration.
      tolerance: 0 to 1, for pixels in [-1, 1]; the largest difference of an image of the parallel
        method from the sequential one, as the calibration predicts it. Without a calibration, the
        largest residual of a block. At 0, the images of both methods are equal up to rounding.
      calibration: how each block is solved in parallel, see `calibrate`.
      return_sequence: whether to return all stages: the noise, then the output of each block.
      return_residual: whether to also return how far each image is from solving its blocks: the
        largest |x - G(x)| over them, which one more pass over each block measures. Images above
        the tolerance are solved again sequentially.
      return_resolved: with return_residual, whether to also return which images these were.

    Returns:
      images [B, H, W, C], float32, not clipped to [-1, 1]; with return_sequence,
      [num_blocks + 1, B, H, W, C], the last of which are the images. With return_residual,
      (images, residual [B]); with return_resolved, (images, residual [B], resolved bool [B]).

    Raises:
      InputError: the model cannot serve the shapes, the labels, the guidance or the calibration.
    """
    check_params(model, params)
    settings = Guidance.checked(
        model.num_classes,
        guidance=guidance,
        guide=guide,
        anneal_guidance=anneal_guidance,
        attention_temperature=attention_temperature,
    )
    prior_temperature = PRIOR_TEMPERATURE.check('prior_temperature', prior_temperature)
    METHOD.check('method', method)
    tolerance = TOLERANCE.check('tolerance', tolerance)
    calibration = _resolve_calibration(method, calibration, model)
    Boolean().check('return_sequence', return_sequence)
    Boolean().check('return_residual', return_residual)
    Boolean().check('return_resolved', return_resolved)
    noise = as_batch('noise', noise, model.image_shape)
    if labels is None:
        settings.check_labels(-1, model.num_classes)
    labels = as_labels(labels, len(noise), model.num_classes)
    sequence, residual, resolved = _sample(
        *(model, params, noise, labels, settings, prior_temperature, calibration, tolerance),
        return_residual,
    )
    images = sequence if return_sequence else sequence[-1]
    if not return_residual:
        return images
    return (images, residual, resolved) if return_resolved else (images, residual)


def _resolve_calibration(method, calibration: Calibration | None, model: TarFlow) -> Calibration:
    flow = model.token_flow()
    default = Calibration.default(flow, WINDOW if method == 'parallel' else 1)
    if method == 'sequential' or calibration is None:
        return default
    if not isinstance(calibration, Calibration):
        raise_invalid('calibration', 'must be a Calibration', calibration)
    if calibration.offset.shape != default.offset.shape:
        blocks, dim = calibration.offset.shape
        raise InputError(
            f'calibration is for {blocks} blocks with tokens of {dim} features; the model has '
            f'{flow.num_blocks} with {flow.token_dim}. Calibrate this model.'
        )
    windows = calibration.windows
    if not isinstance(windows, tuple) or len(windows) != flow.num_blocks:
        raise_invalid('calibration.windows', f'must be a tuple of {flow.num_blocks}', windows)
    for window in windows:
        Integer(1).check('a window of the calibration', window)
    return calibration


@functools.partial(jax.jit, static_argnums=(0, 8))
def _sample(
    model: TarFlow,
    params,
    noise,
    labels,
    guidance: Guidance,
    prior_temperature,
    calibration,
    tolerance,
    certify,
):
    latents = scale_noise(model, params, noise, prior_temperature)
    solution = inverse(
        *(model.token_flow(), params, model.patchify(latents), labels, guidance, calibration),
        tolerance,
        certify=certify,
    )
    stages = jax.vmap(model.unpatchify)(solution.tokens[::-1])
    sequence = jnp.concatenate([noise[None], stages])
    return sequence, solution.residual.max(axis=0), solution.resolved.any(axis=0)


def scale_noise(model: TarFlow, params, noise, prior_temperature):
    """Latents of standard normal noise: draws from the model's prior at a temperature."""
    latents = noise * prior_temperature
    return latents * jnp.sqrt(params['prior_var'])[None] if model.volume_preserving else latents
