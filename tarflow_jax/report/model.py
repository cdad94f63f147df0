"""What a trained model does now: its samples, and the latents of images that it has not seen."""

import dataclasses

import jax
import numpy as np
from ml_collections import ConfigDict

from tarflow_jax.build import Experiment, make_model
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.planning.flops import forward_flops
from tarflow_jax.sampling.batches import draw_noise
from tarflow_jax.sampling.denoise import denoise
from tarflow_jax.sampling.guidance import GUIDANCE_KEYS
from tarflow_jax.sampling.sample import sample

MAX_IMAGES = 100  # images that are drawn or mapped
MIN_IMAGES = 8
FLOP_BUDGET = 1e13  # of passes over these images, which take a minute or two of a few CPU cores
SEED = 0
DEFAULT_GUIDANCE = 1.0  # of the guidance that is shown where the config has none


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images from the same noise.

    Attributes:
      labels: int [B]; None without classes.
      stages: float32 [num_blocks + 1, B, H, W, C]: the noise, and each block's solution, unguided.
      denoised: the last stage after a denoising step; None for a model without Gaussian noise.
      guided: with guidance, and denoised if that can be; None where guidance has no effect.
      weight: of that guidance.
      is_guided: whether the config guides samples.
    """

    labels: np.ndarray | None
    stages: np.ndarray
    denoised: np.ndarray | None
    guided: np.ndarray | None
    weight: float
    is_guided: bool

    @property
    def final(self) -> np.ndarray:
        """The samples as the config has them."""
        if self.is_guided and self.guided is not None:
            return self.guided
        return self.stages[-1] if self.denoised is None else self.denoised


def open_experiment(config: ConfigDict) -> Experiment:
    """The experiment of a workdir's config on one device, whatever devices it was trained on."""
    settings = {**config.model, 'attention': 'auto'}
    device = jax.local_devices()[0]
    mesh = make_mesh(devices=[device])
    return Experiment(config, make_model(settings, device), mesh, sampling={})


def draw(experiment: Experiment, params) -> Samples:
    """Draws a batch of samples with and without guidance and the denoising step."""
    config, model = experiment.config, experiment.model
    settings = config.sample
    count = count_images(model)
    labels = spread_labels(count, model.num_classes)
    key = jax.random.key(settings.seed)
    noise = draw_noise(model.image_shape, key, np.arange(count), np.zeros(count, np.int32))
    prior = {'prior_temperature': settings.prior_temperature}
    stages = sample(model, params, noise, labels, return_sequence=True, **prior)
    std = config.noise.std if config.noise.type == 'gaussian' else 0.0

    def without_noise(images):
        return denoise(model, params, images, labels, noise_std=std) if std else images

    weight, guided = settings.guidance or DEFAULT_GUIDANCE, None
    if model.num_classes > 1 or settings.attention_temperature != 1:
        how = {key: settings[key] for key in GUIDANCE_KEYS} | {'guidance': weight, **prior}
        guided = without_noise(sample(model, params, noise, labels, **how))
    return Samples(
        labels,
        np.asarray(stages),
        np.asarray(without_noise(stages[-1])) if std else None,
        None if guided is None else np.asarray(guided),
        weight,
        bool(settings.guidance),
    )


def latents(experiment: Experiment, params) -> tuple[np.ndarray, np.ndarray | None]:
    """Test images with their noise, then their latents after each block, and the labels.

    Returns:
      float32 [num_blocks + 1, B, H, W, C], the last relative to the prior's deviation; int [B], or
      None without classes.

    Raises:
      InputError: the data set is not on this machine.
    """
    config, model = experiment.config, experiment.model
    split = experiment.dataset.split(config.data.test_split, 'data.test_split')
    index = np.unique(np.linspace(0, len(split) - 1, count_images(model)).astype(int))
    batch = split.__getitems__(index)
    images = experiment.noise.add(jax.random.key(SEED), batch['image'])
    labels = batch['label'] if model.num_classes else None

    @jax.jit
    def forward(params, images, labels):
        return model.apply({'params': params}, images, labels, method='forward_blocks')[0]

    stages = np.concatenate([np.asarray(images)[None], forward(params, images, labels)])
    if model.volume_preserving:
        stages[-1] /= np.sqrt(params['prior_var'])
    return stages, labels


def count_images(model) -> int:
    """The number of images to draw: more for small models, if possible equally many per class."""
    count = int(np.clip(FLOP_BUDGET // forward_flops(model), MIN_IMAGES, MAX_IMAGES))
    return count - count % model.num_classes if 0 < model.num_classes <= count else count


def spread_labels(count: int, num_classes: int) -> np.ndarray | None:
    """Labels in turn, or of many classes some from the first to the last; None without classes."""
    if not num_classes:
        return None
    index = np.arange(count)
    return index % num_classes if num_classes <= count else index * num_classes // count
