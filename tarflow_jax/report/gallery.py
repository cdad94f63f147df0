"""The report's sections about the model: samples, sampling, latents and architecture."""

import math

from tarflow_jax import imagefiles, pictures
from tarflow_jax.build import Experiment
from tarflow_jax.errors import InputError
from tarflow_jax.flow.tarflow import count_parameters
from tarflow_jax.pictures.journey import last_frame
from tarflow_jax.planning.flops import forward_flops
from tarflow_jax.quantities import shorten
from tarflow_jax.report import model as models
from tarflow_jax.report.model import Samples
from tarflow_jax.report.page import (
    Section,
    animated_figure,
    columns,
    figure,
    missing,
    paragraph,
    table,
)

COLUMNS = 10  # of the rows of images, at most
FILM_PIXELS = 2**17  # of all images of an animation
_DENOISED = (
    'A model of images with Gaussian noise draws noisy images. The denoising step removes the '
    'noise. '
)
_GUIDED = 'Guidance draws images that are more like their class, and less like one another.'


def samples(samples: Samples) -> Section:
    """Samples as the config has them, and the same noise in other ways."""
    guided = f'guidance {samples.weight:g}' if samples.is_guided else 'no guidance'
    denoised = ', after the denoising step' if samples.denoised is not None else ''
    names = [] if samples.labels is None else [str(label) for label in samples.labels[:COLUMNS]]
    comparison = pictures.comparison(
        samples.stages[-1][:COLUMNS],
        None if samples.denoised is None else samples.denoised[:COLUMNS],
        None if samples.guided is None else samples.guided[:COLUMNS],
        names,
        samples.weight,
    )
    words = _DENOISED if samples.denoised is not None else ''
    words += _GUIDED if samples.guided is not None else ''
    by_class = '' if samples.labels is None else ' by class'
    return Section(
        'Samples',
        [
            columns(
                figure(
                    pictures.grid(samples.final, samples.labels),
                    f'{len(samples.final)} samples{by_class}: {guided}{denoised}.',
                ),
                paragraph(words) + figure(comparison, 'Images from the same noise.'),
            )
        ],
    )


def journey(samples: Samples, patch_size: int) -> Section:
    """Noise on its way to images, as rows and as an animation."""
    names = [] if samples.labels is None else [str(label) for label in samples.labels[:COLUMNS]]
    pixels = math.prod(samples.stages.shape[2:4])
    shown = samples.stages[:, : max(1, min(COLUMNS, FILM_PIXELS // pixels))]
    animation = animated_figure(
        pictures.animation(shown, patch_size),
        imagefiles.encode_png(last_frame(shown)),
        'The sampler at work: each block is solved token by token, in its own direction.',
    )
    words = (
        'Sampling solves the blocks from the last to the first, each for its input: noise becomes '
        'an image. Without guidance or denoising, the way back is exact.'
    )
    strip = figure(
        pictures.journey(samples.stages[:, :COLUMNS], names),
        'Before and after each block; latents are rescaled for display.',
    )
    return Section('From noise to images', [columns(strip, paragraph(words) + animation)])


def latents(experiment: Experiment, params) -> Section:
    """Test images on their way to noise."""
    title = 'Latents'
    try:
        stages, labels = models.latents(experiment, params)
    except InputError as error:
        return Section(title, [missing(f'There are no images to map to latents: {error}')])
    names = [] if labels is None else [str(label) for label in labels[:COLUMNS]]
    words = (
        f'Do images become noise? {stages.shape[1]} images of the test split, with the noise of '
        'the training run, after each block. If the model is right, the result of the last block '
        'has the density, the standard deviation and the correlations of noise.'
    )
    images = pictures.latents(stages[:, :COLUMNS], names)
    return Section(
        title,
        [
            paragraph(words),
            columns(
                figure(images, 'Images on their way to noise; latents are rescaled for display.'),
                figure(pictures.latent_statistics(stages), 'What they have in common with noise.'),
            ),
        ],
    )


def architecture(experiment: Experiment) -> Section:
    """The model, drawn and in numbers."""
    model = experiment.model
    picture = pictures.architecture(model)
    words = (
        'An image is cut into patches, the tokens of a sequence. Each block shifts and scales '
        'every token as a causal transformer predicts from the tokens before it; the direction '
        'alternates from block to block.'
    )
    heads = model.width // model.head_dim
    sizes = [
        ('image', ' × '.join(map(str, model.image_shape))),
        ('patch', f'{model.patch_size} × {model.patch_size}'),
        ('tokens', f'{model.token_flow().num_tokens:,}'),
        ('features of a token', str(model.token_flow().token_dim)),
        ('blocks', str(model.num_blocks)),
        ('layers per block', str(model.layers_per_block)),
        ('width', str(model.width)),
        ('heads', f'{heads} of {model.head_dim}'),
        ('classes', str(model.num_classes or 'none')),
        ('parameters', f'{count_parameters(model.param_shapes()):,}'),
        ('FLOPs of a forward pass', f'{shorten(forward_flops(model))} per image'),
        ('type of the layers', model.dtype),
    ]
    beside = paragraph(words) + table(sizes)
    return Section('Architecture', [columns(beside, figure(picture, 'The model.'))])
