"""Names in a compiled program, and so in a profile, follow the architecture."""

import re

import jax
import numpy as np
import pytest

from tarflow_jax.flow import TarFlow
from tarflow_jax.sampling.denoise import denoise
from tarflow_jax.sampling.sample import sample
from tarflow_jax.training.objective import negative_log_likelihood

MODEL = TarFlow((4, 4, 1), 2, width=8, head_dim=4, num_blocks=2, layers_per_block=2, num_classes=3)


def loss(params, images, labels):
    return negative_log_likelihood(MODEL, params, images, labels)[0].mean()


def guided_sample(params, noise, labels):
    return sample(MODEL, params, noise, labels, guidance=1.0)


def denoised(params, images, labels):
    return denoise(MODEL, params, images, labels, noise_std=0.1)


@pytest.mark.parametrize(
    ('function', 'scopes'),
    [
        (
            jax.grad(loss),
            [
                'loss/patchify',
                'loss/blocks/proj_in',
                'loss/blocks/layers/attention_norm',
                'loss/blocks/layers/attention/qkv',
                'loss/blocks/layers/mlp_norm',
                'loss/blocks/layers/mlp/up',
                'loss/blocks/proj_out',
                'loss/blocks/affine',
                'loss/prior',
            ],
        ),
        (
            guided_sample,
            [
                'patchify',
                'inverse_block/inverse_token/layers/attention/qkv',
                'inverse_block/inverse_token/layers/mlp/up',
                'inverse_block/inverse_token/guidance',
                'inverse_block/inverse_token/affine',
                'unpatchify',
            ],
        ),
        (denoised, ['denoise/blocks/layers/attention/qkv']),
    ],
    ids=['loss', 'sample', 'denoise'],
)
def test_operations_are_named_by_the_parts_they_belong_to(function, scopes, random_params):
    images, labels = np.zeros((2, *MODEL.image_shape), np.float32), np.zeros(2, np.int32)
    compiled = jax.jit(function).lower(random_params(MODEL), images, labels).compile()
    names = re.findall(r'op_name="([^"]*)"', compiled.as_text())
    for scope in scopes:
        parts = '.*[/(]'.join(rf'{part}\b' for part in scope.split('/'))
        assert any(re.search(rf'[/(]{parts}', name) for name in names), scope
