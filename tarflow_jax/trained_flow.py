"""A trained flow as one object, with methods for sampling, likelihoods and classification."""

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tarflow_jax import capacity, inputs
from tarflow_jax.errors import InputError
from tarflow_jax.flow.inputs import as_key
from tarflow_jax.flow.tarflow import TarFlow, check_params, count_parameters
from tarflow_jax.keys import CLASS_NAMES
from tarflow_jax.likelihood import classify, densities
from tarflow_jax.likelihood.noise import Noise, TypeAndStd, type_and_std
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.sampling import calibration_file, inpaint, paths
from tarflow_jax.sampling.denoise import denoise as score_step
from tarflow_jax.sampling.draw import NUMBER, draw
from tarflow_jax.sampling.inpaint import Inpainting
from tarflow_jax.sampling.sample import PRIOR_TEMPERATURE
from tarflow_jax.values import Boolean, PathValue
from tarflow_jax.workdir import config_of, workdir_of

_IF_GAUSSIAN = 'if it was Gaussian, give noise_std'
_DENOISE_LATER = f'leave out denoise or, {_IF_GAUSSIAN} to `denoise`'
BATCH = 100  # samples at a time, unless the config has another number


class TrainedFlow:
    """A model with its parameters, and with what is known of its training.

        flow = tarflow_jax.load('runs/digits')
        images = flow.sample(0, 10, guidance=1.0, denoise=True)
        flow.classify(images).argmax(axis=1)
        model, params = flow

    Methods accept images as float in [-1, 1], as uint8 in 0 to 255, as Pillow images, or as lists
    of these, see `inputs.image_batch`; they return float32 [B, H, W, C], not clipped. Latents have
    the shape of images. Labels are one class for all images, or a list or an array with one for
    each image; a class is given by its number or, if names are known, by its name. -1 is no label,
    and None stands for no labels. A key is a key of `jax.random.key`, or a seed.

    Each method calls the function of its name with `model` and `params`.

    Attributes:
      model: the `TarFlow`.
      params: its float32 parameters.
      config: the config it was trained with; of any other model, what is known of it.
      noise: `type` ('gaussian' or 'uniform') and `std` of the noise on the images that it learned;
        None if that is unknown.
      step: the training step of its checkpoint; None for a published one.
      path: where it was loaded from; None if it was not.
    """

    def __init__(
        self,
        model: TarFlow,
        params,
        config: ConfigDict | None = None,
        step: int | None = None,
        *,
        path: Path | None = None,
    ):
        self.model = model
        self.params = params
        self.config = config = config_of(model, None, None) if config is None else config
        self.step = step
        self.path = path
        self.noise: TypeAndStd | None = None
        if 'noise' in config:
            self.noise = type_and_std(config.noise.type, config.noise.std)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.params))

    def __getitem__(self, index):
        return (self.model, self.params)[index]

    def __repr__(self) -> str:
        shape = 'x'.join(map(str, self.model.image_shape))
        count = count_parameters(self.params)
        classes = f', {self.model.num_classes} classes' if self.model.num_classes else ''
        noise = f', {self.noise.type} noise of {self.noise.std:g}' if self.noise else ''
        step = '' if self.step is None else f', step {self.step}'
        return f'TrainedFlow({shape} images{classes}, {count:,} parameters{noise}{step})'

    def sample(
        self,
        key=0,
        num: int | None = None,
        labels=None,
        *,
        guidance: float = 0.0,
        guide: str = 'both',
        anneal_guidance: bool = False,
        attention_temperature: float = 1.0,
        temperature: float = 1.0,
        method: str = 'auto',
        tolerance: float = 1e-3,
        return_residual: bool = False,
        return_resolved: bool = False,
        denoise: bool = False,
        progress: bool = False,
    ) -> Any:
        """Draws images.

        Args:
          key: a key, or a seed; for the same seed, `--mode=sample` draws the same images.
          num: the number of images; by default that of the labels, or 16.
          labels: by default all classes in turn; -1 for images without a label.
          guidance: weight of the guidance, from 0; above 0, sampling costs twice as much.
          guide: what is guided, see `tarflow_jax.sample` for this and the next two.
          anneal_guidance: whether the weight grows over the tokens of each block.
          attention_temperature: guides without classes.
          temperature: standard deviation of the prior relative to the trained one.
          method: 'sequential', 'parallel', or 'auto', which uses the workdir's calibration if
            there is one for these settings on this device (`--mode=calibrate`).
          tolerance: how exact images of the parallel method must be.
          return_residual: whether to also return how exact each image is.
          return_resolved: whether to also return which images were solved again.
          denoise: whether to remove the noise that the model was trained with; see `denoise`.
          progress: whether to show a progress bar.

        Returns:
          images [num, H, W, C], float32; with return_residual, (images, residual [num]); with both,
          (images, residual [num], resolved bool [num]).
        """
        num = NUMBER.check('num', self._count(labels) if num is None else num)
        capacity.check_samples('num', num, memory_each=8 * math.prod(self.model.image_shape))
        Boolean().check('denoise', denoise)
        temperature = PRIOR_TEMPERATURE.check('temperature', temperature)
        if labels is None:
            labels = np.arange(num) % self.model.num_classes if self.model.num_classes else -1
        settings = dict(
            guidance=guidance,
            guide=guide,
            anneal_guidance=anneal_guidance,
            attention_temperature=attention_temperature,
            prior_temperature=temperature,
            method=method,
            tolerance=tolerance,
        )
        batch_size = min(num, self._batch_size())
        return draw(
            *(self.model, self.params, as_key(key), self._labels(labels, num)),
            batch_size=batch_size,
            denoise_std=self._gaussian_std(_DENOISE_LATER) if denoise else 0.0,
            progress=progress,
            return_residual=return_residual,
            return_resolved=return_resolved,
            calibration=self._calibration(settings, num, batch_size),
            **settings,
        )

    def forward(self, images, labels=None) -> tuple[jax.Array, jax.Array]:
        """Maps images to latents [B, H, W, C] and log_det [B], in nats; see `paths.forward`."""
        return paths.forward(self.model, self.params, *self._images_and_labels(images, labels))

    def inverse(self, latents, labels=None) -> jax.Array:
        """Maps latents [B, H, W, C] to images [B, H, W, C], which inverts `forward`."""
        return self.journey(latents, labels)[-1]

    def journey(self, latents, labels=None) -> jax.Array:
        """The path from latents to images, [num_blocks + 1, B, H, W, C]; see `paths.journey`.

        Latents are those of `forward`, or noise: standard normal, times the standard deviation of
        the prior where the model is volume-preserving.
        """
        latents = inputs.latent_batch(latents, self.model.image_shape)
        labels = self._labels(labels, len(latents))
        return paths.journey(self.model, self.params, latents, labels)

    def reconstruct(self, images, labels=None) -> jax.Array:
        """Images to latents and back [B, H, W, C]: the same images up to rounding."""
        return paths.reconstruct(self.model, self.params, *self._images_and_labels(images, labels))

    def interpolate(self, first, last, steps: int = 8, labels=None) -> jax.Array:
        """Images between `first` and `last`, [steps, B, H, W, C]; see `paths.interpolate`."""
        first, labels = self._images_and_labels(first, labels)
        last = inputs.image_batch(last, self.model.image_shape)
        return paths.interpolate(self.model, self.params, first, last, steps, labels)

    def denoise(self, images, labels=None, *, noise_std: float | None = None) -> jax.Array:
        """Removes the noise from samples with one score step, [B, H, W, C]; see `denoise`.

        Args:
          images: as `sample` gives them.
          labels: those that they were drawn with.
          noise_std: by default the noise that the model was trained with.

        Raises:
          InputError: the model was trained with uniform noise, which no such step removes.
        """
        images, labels = self._images_and_labels(images, labels)
        std = self._gaussian_std(_IF_GAUSSIAN) if noise_std is None else noise_std
        return score_step(self.model, self.params, images, labels, noise_std=std)

    def inpaint(self, images, mask, labels=None, *, key=0, **settings) -> Inpainting:
        """Completes images of which some pixels are known; see `inpaint.inpaint`.

            completed, labels, acceptance = flow.inpaint(images, mask)

        Args:
          images: the unknown pixels may be anything.
          mask: bool [H, W], [H, W, C] or [B, H, W, C], True where a pixel is known.
          labels: None or -1 where they are unknown; they are then sampled, too.
          key: a key, or a seed.
          **settings: `num_candidates` (4000), `num_steps` (100), and `noise_std`.

        Returns:
          images [B, H, W, C], labels [B], and the fraction of the chain's steps that were
          accepted [B]; about 0.57 is ideal.
        """
        images, labels = self._images_and_labels(images, labels)
        settings.setdefault('noise_std', self.noise.std if self.noise else 0.0)
        key = as_key(key)
        return inpaint.inpaint(self.model, self.params, images, mask, labels, key=key, **settings)

    def log_prob(self, images, labels=None) -> jax.Array:
        """log p(images | labels) [B] in nats, summed over pixels; see `densities.log_prob`."""
        return densities.log_prob(self.model, self.params, *self._images_and_labels(images, labels))

    def bits_per_dim(
        self, images, labels=None, *, num_levels: int = 256, num_draws: int = 8, seed: int = 0
    ) -> np.ndarray:
        """Bits per dimension [B] of uint8 images, exactly as `--mode=evaluate` scores them.

        A code length only for models that were trained with uniform noise; see
        `densities.bits_per_dim`.

        Args:
          images: uint8, levels in 0 to num_levels - 1, or Pillow images.
          labels: see the class.
          num_levels: levels of a pixel; 17 for the digits, 256 for nearly everything else.
          num_draws: draws of the noise for each image.
          seed: seed of the noise.
        """
        if self.noise is None:
            raise InputError('the noise that the model was trained with is unknown.')
        noise = Noise(*self.noise, num_levels=num_levels)
        levels = inputs.level_batch(images, self.model.image_shape, num_levels)
        return densities.bits_per_dim(
            *(self.model, self.params, levels, self._labels(labels, len(levels))),
            noise=noise,
            num_draws=num_draws,
            seed=seed,
        )

    def classify(self, images) -> jax.Array:
        """log p(class | images) [B, num_classes] by Bayes' rule; see `class_log_probs`."""
        images = inputs.image_batch(images, self.model.image_shape)
        return classify.class_log_probs(self.model, self.params, images)

    @functools.cached_property
    def class_names(self) -> Sequence[str]:
        """Names of the classes in the order of their numbers; () if they are not known.

        They are read from the data set that the model learned, if it is prepared on this machine.
        """
        if CLASS_NAMES in self.config:
            return tuple(self.config[CLASS_NAMES])
        if 'data' not in self.config or not self.config.data.get('dir'):
            return ()
        from tarflow_jax.data.folder import class_names

        return class_names(self.config.data.name, self.config.data.dir)

    def save_pretrained(self, folder, *, title: str = '') -> Path:
        """Writes the model as a folder to share, which `load` and `from_pretrained` take.

        It holds `model.safetensors`, `config.json`, and a model card, `README.md`, with the scores
        of the workdir's evaluation, if that is of these parameters. Each file appears complete or
        not at all. To publish it: `hf upload OWNER/NAME FOLDER`.

        Args:
          folder: is made if it is missing; the three files are replaced if they are there.
          title: the heading of the card; by default the folder's name.

        Returns:
          The folder.

        Raises:
          InputError: the folder is a workdir, or cannot be written to; or the parameters are not
            those of the model.
        """
        from tarflow_jax.sharing import card, pretrained

        check_params(self.model, self.params)
        folder = PathValue().check('folder', folder)
        dataset = self.config.data.get('name', '') if 'data' in self.config else ''
        config = config_of(self.model, self.noise, dataset)
        if self.class_names:
            config[CLASS_NAMES] = list(self.class_names)
        workdir = self.path and workdir_of(self.path)
        title = title or folder.absolute().name
        text = card.write_card(title, self.model, self.params, config, self.step, workdir)
        return pretrained.write(folder, self.params, config, text)

    def _images_and_labels(self, images, labels):
        images = inputs.image_batch(images, self.model.image_shape)
        return images, self._labels(labels, len(images))

    def _labels(self, labels, batch: int) -> jax.Array:
        return inputs.label_batch(labels, batch, self.model.num_classes, lambda: self.class_names)

    def _batch_size(self) -> int:
        return self.config.sample.get('batch_size', BATCH) if 'sample' in self.config else BATCH

    def _count(self, labels) -> int:
        is_scalar = isinstance(labels, str) or getattr(labels, 'ndim', 1) == 0
        return 16 if is_scalar or not hasattr(labels, '__len__') else len(labels)

    def _gaussian_std(self, instead: str) -> float:
        if self.noise is None or self.noise.type != 'gaussian':
            known = 'unknown' if self.noise is None else self.noise.type
            raise InputError(
                f'the noise that the model was trained with is {known}, and only Gaussian noise '
                f'has a score step that removes it; {instead}.'
            )
        return self.noise.std

    def _calibration(self, settings, num: int, batch_size: int):
        """The calibration of the workdir, if it is for these settings on this device."""
        if settings['method'] != 'auto' or self.path is None:
            return None
        workdir = workdir_of(self.path)
        if not (workdir / calibration_file.FILE).is_file():
            return None
        mesh = make_mesh(devices=[next(iter(jax.tree.leaves(self.params)[0].devices()))])
        counts = dict(num_samples=num, batch_size=batch_size)
        return calibration_file.find_calibration(
            [workdir], self.model, self.params, mesh, settings | counts
        )
