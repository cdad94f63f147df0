"""Builds an experiment from a config: its model, its mesh and its sampler settings."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tarflow_jax import keys
from tarflow_jax.errors import InputError, RunError
from tarflow_jax.flow import TarFlow, patches
from tarflow_jax.flow.attention import SPLASH_BLOCKS
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.parallel.libtpu import quiet_without_tpu
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.sampling.guidance import GUIDANCE_KEYS, Guidance
from tarflow_jax.sampling.labels import Labels, label_cycle

if TYPE_CHECKING:
    from tarflow_jax.data.dataset import Dataset

KERNEL_PLATFORMS = {'splash': 'tpu', 'cudnn': 'gpu'}


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """What a config names, built and checked.

    Attributes:
      config: see `configs/base.py`; every value is one that its key may have.
      model: the flow, with the attention kernel of the devices.
      mesh: the devices.
      sampling: arguments of `sampling.batches.sample_batches`, from the section sample.
    """

    config: ConfigDict
    model: TarFlow
    mesh: Mesh
    sampling: Mapping[str, Any]

    @functools.cached_property
    def dataset(self) -> 'Dataset':
        """The data set, opened on first use, because sampling does not need it.

        Raises:
          InputError: the data set is unknown, or its images or labels do not fit the model.
        """
        from tarflow_jax.data.sources import open_dataset  # a model is loaded without TFDS

        model, (height, width, _) = self.model, self.model.image_shape
        dataset = open_dataset(
            self.config.data.name,
            self.config.data.dir,
            image_size=height if height == width else None,
        )
        if dataset.image_shape != model.image_shape:
            raise InputError(
                f'the images of {dataset.name} have the shape {dataset.image_shape}, the model is '
                f'for {model.image_shape}: set config.model.image_shape.'
            )
        if model.num_classes and not dataset.num_classes:
            raise InputError(
                f'{dataset.name} has no labels, and the model is for {model.num_classes} classes: '
                'set config.model.num_classes=0.'
            )
        if model.num_classes and dataset.num_classes > model.num_classes:
            raise InputError(
                f'{dataset.name} has {dataset.num_classes} classes, the model only '
                f'{model.num_classes}: set config.model.num_classes (0 for no conditioning).'
            )
        return dataset

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by number; () where the data set has none, or is not here."""
        from tarflow_jax.data.folder import class_names

        return class_names(self.config.data.name, self.config.data.dir)

    @functools.cached_property
    def noise(self) -> Noise:
        """The noise that turns the integer levels of the data set into real-valued pixels."""
        return Noise(self.config.noise.type, self.config.noise.std, self.dataset.num_levels)


def build(config, devices: Sequence[jax.Device] | None = None) -> Experiment:
    """Builds the experiment of a config.

    Args:
      config: see `configs/base.py`.
      devices: the devices to run on, by default all that JAX has.

    Raises:
      InputError: a key is unknown or missing, a value is not one that its key may have, or values
        do not go together.
    """
    keys.check(config)
    if devices is None:
        devices = _find_devices()
    model = make_model(config.model, devices[0])
    settings = config.sample
    Guidance.checked(model.num_classes, **{key: settings[key] for key in GUIDANCE_KEYS})
    removes_noise = settings.denoise and config.noise.type == 'gaussian'
    sampling = {key: value for key, value in settings.items() if key != 'denoise'}
    sampling['denoise_std'] = config.noise.std if removes_noise else 0.0
    experiment = Experiment(config, model, make_mesh(**config.mesh, devices=devices), sampling)
    sampling['labels'] = Labels().numbers(
        *('sample.labels', settings.labels, lambda: experiment.dataset.class_names)
    )
    label_cycle(sampling['labels'], model.num_classes)  # checks it
    return experiment


def _find_devices() -> list[jax.Device]:
    """All devices.

    Raises:
      InputError: JAX_PLATFORMS names a platform that JAX does not have here.
      RunError: the devices, or those of another process, do not start.
    """
    try:
        with quiet_without_tpu():
            return jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX raises a bare AssertionError where only CUDA was requested and there is no GPU.
        reason = str(error).partition('\n')[0].rstrip('.') or 'there is no NVIDIA GPU'
        asked = os.environ.get('JAX_PLATFORMS')
        if asked and (isinstance(error, AssertionError) or 'known backends' in reason):
            raise InputError(
                f'JAX finds no device (JAX_PLATFORMS={asked}): {reason}. Unset JAX_PLATFORMS to '
                'take what there is, or install JAX for that hardware, such as '
                "pip install -e '.[cuda]'."
            ) from error
        raise RunError(f'JAX cannot start its devices: {reason}.') from error


def make_model(settings, device: jax.Device | None = None) -> TarFlow:
    """Makes the model of a config's model section, with an attention kernel that the device has.

    Args:
      settings: attributes of a `TarFlow`; attention may also be 'auto'.
      device: one of the devices to run on, by default JAX's first device.

    Raises:
      InputError: the sizes do not fit together, or the attention kernel needs another platform.
    """
    attention = _choose_attention(settings, device or jax.devices()[0])
    attributes: dict[str, Any] = {**settings, 'attention': attention}
    return TarFlow(**attributes)


def _choose_attention(settings, device) -> str:
    attention = settings['attention']
    if attention == 'auto':
        kernels = (kernel for kernel, suits in _SUITABLE.items() if suits(settings, device))
        return next(kernels, 'xla')
    needed = KERNEL_PLATFORMS.get(attention, device.platform)
    if needed != device.platform:
        raise InputError(
            f'model.attention={attention} runs on a {needed}; the devices here are '
            f'{device.platform}. Set model.attention to auto or xla.'
        )
    return attention


def _suits_splash(settings, device) -> bool:
    rows, columns = patches.grid_shape(tuple(settings['image_shape']), settings['patch_size'])
    divides = rows * columns % SPLASH_BLOCKS[-1] == 0
    return device.platform == 'tpu' and settings['dtype'] == 'bfloat16' and divides


def _suits_cudnn(settings, device) -> bool:
    """Flash attention of cuDNN: from Ampere (compute capability 8.0) on."""
    capability = getattr(device, 'compute_capability', '')  # '9.0', of AMD's GPUs 'gfx942'
    major, _, _ = capability.partition('.')
    head_dim = settings['head_dim']
    has_kernel = device.platform == 'gpu' and major.isdigit() and int(major) >= 8
    return has_kernel and settings['dtype'] == 'bfloat16' and head_dim % 8 == 0 and head_dim <= 128


_SUITABLE = {'splash': _suits_splash, 'cudnn': _suits_cudnn}
