"""Numbers of the published PyTorch code, computed by ours; README.md describes them."""

import functools
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import tarflow_jax
from tarflow_jax.flow import patches
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.training.objective import negative_log_likelihood

HERE = Path(__file__).parent
NAMES = ('cond', 'uncond', 'vp')
INPUTS = ('x', 'y', 'y_dropped', 'noise', 'bpd_x_int', 'bpd_u', 'denoise_std')
GUIDE = {'a': 'scale', 'b': 'shift', 'ab': 'both'}


class Golden:
    """One published model: its arrays, and ours computed from the same inputs."""

    def __init__(self, name):
        with np.load(HERE / f'{name}.npz') as arrays:
            self.arrays = dict(arrays)
        sizes = json.loads((HERE / f'{name}.json').read_text())
        self.image_shape = (sizes['img_size'], sizes['img_size'], sizes['in_channels'])
        self.patch_size = sizes['patch_size']
        self.dims = math.prod(self.image_shape)
        self.model, self.params = tarflow_jax.load(
            HERE / f'{name}.pth', image_shape=self.image_shape, patch_size=self.patch_size
        )
        self.x = self.image('x')
        self.y = self.arrays.get('y')

    def image(self, key):
        """Tokens [B, T, P], or images [..., C, H, W], as images [..., H, W, C]."""
        array = self.arrays[key]
        if array.ndim == 3:
            return patches.unpatchify(array, self.patch_size, self.image_shape)
        return np.moveaxis(array, -3, -1)

    @functools.cached_property
    def apply(self):
        return jax.jit(self.model.apply, static_argnames=('method', 'prior'))

    def forward(self, labels):
        return self.apply({'params': self.params}, self.x, labels)

    @functools.cached_property
    def blocks(self):
        latents, _ = self.apply({'params': self.params}, self.x, self.y, method='forward_blocks')
        return latents

    @functools.cached_property
    def loss_and_gradients(self):
        def loss(params, images):
            nats_per_dim, _ = negative_log_likelihood(self.model, params, images, self.y)
            return nats_per_dim.mean()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(self.params, self.x)

    def sample(self, **arguments):
        return tarflow_jax.sample(self.model, self.params, self.image('noise'), self.y, **arguments)

    def bits_per_dim(self):
        levels = np.moveaxis(self.arrays['bpd_x_int'], 1, -1)
        offset = np.moveaxis(self.arrays['bpd_u'], 1, -1)
        images = 2 * (levels + offset) / 256 - 1
        log_prob = self.apply(
            {'params': self.params}, images, self.y, prior='standard', method='log_prob'
        )
        return Noise('uniform', 0.0, num_levels=256).bits_per_dim(-log_prob / self.dims)


golden = functools.cache(Golden)


def guidance_of(key):
    """The arguments of `sample` that a name such as 'sample_g1_ab_temp0.7_annealed' stands for."""
    weight, parts, temperature, annealed = re.fullmatch(
        r'sample_g([\d.]+)_(ab|a|b)(?:_temp([\d.]+))?(_annealed)?', key
    ).groups()
    return dict(
        guidance=float(weight),
        guide=GUIDE[parts],
        attention_temperature=float(temperature or 1),
        anneal_guidance=bool(annealed),
    )


def ours_and_theirs(g: Golden, key):
    """What our code computes for an array, and the array, in the same layout."""
    match key:
        case 'z':
            return g.forward(g.y)[0], g.image(key)
        case 'z_dropped':
            return g.forward(g.arrays['y_dropped'])[0], g.image(key)
        case 'z_nolabel':
            return g.forward(None)[0], g.image(key)
        case 'logdet_mean':
            return g.forward(g.y)[1] / g.dims, g.arrays[key]
        case 'logdet_mean_dropped':
            return g.forward(g.arrays['y_dropped'])[1] / g.dims, g.arrays[key]
        case 'loss':
            nats_per_dim, _ = g.loss_and_gradients
            return nats_per_dim - math.log(2 * math.pi) / 2, g.arrays[key]
        case 'grad_x_of_loss':
            return g.loss_and_gradients[1][1], g.image(key)
        case 'grad_block0_proj_in_weight':
            kernels = g.loss_and_gradients[1][0]['blocks']['proj_in']['kernel']
            return kernels[0].T, g.arrays[key]
        case 'grad_block1_pos_embed':
            embeddings = g.loss_and_gradients[1][0]['blocks']['pos_embed']
            return embeddings[1][::-1], g.arrays[key]
        case 'sample_plain':
            return g.sample(), g.image(key)
        case 'sample_sequence':
            return g.sample(return_sequence=True), g.image(key)
        case 'denoised':
            std = float(g.arrays['denoise_std'])
            denoised = tarflow_jax.denoise(g.model, g.params, g.x, g.y, noise_std=std)
            return denoised, g.image(key)
        case 'bpd':
            return g.bits_per_dim(), g.arrays[key]
        case _ if key.startswith('sample_g'):
            return g.sample(**guidance_of(key)), g.image(key)
        case _ if key.startswith('z_block'):
            return g.blocks[int(key.removeprefix('z_block'))], g.image(key)
    raise AssertionError(f'{key} is compared with nothing')


def outputs(name):
    with np.load(HERE / f'{name}.npz') as arrays:
        return [key for key in arrays if key not in INPUTS]


@pytest.mark.parametrize(('name', 'key'), [(n, key) for n in NAMES for key in outputs(n)])
def test_agrees_with_the_published_code(name, key):
    ours, theirs = ours_and_theirs(golden(name), key)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_sizes_are_inferred_from_the_tensors(name):
    sizes = json.loads((HERE / f'{name}.json').read_text())
    model = golden(name).model
    inferred = (
        model.width,
        model.num_blocks,
        model.layers_per_block,
        model.num_classes,
        not model.volume_preserving,
        model.head_dim,
    )
    keys = ('channels', 'num_blocks', 'layers_per_block', 'num_classes', 'nvp', 'head_dim')
    assert inferred == tuple(sizes[key] for key in keys)


def test_the_published_log_probability_is_that_under_a_standard_normal():
    """A volume-preserving model is trained and scored with variance 1, whatever it tracked."""
    g = golden('vp')
    latents, log_det = g.forward(g.y)
    quadratic = 0.5 * np.mean(np.square(latents), axis=(1, 2, 3))
    by_hand = -g.dims * (quadratic + math.log(2 * math.pi) / 2) + log_det
    standard = g.apply({'params': g.params}, g.x, g.y, prior='standard', method='log_prob')
    np.testing.assert_allclose(standard, by_hand, rtol=1e-5)
