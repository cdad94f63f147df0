"""Names of published checkpoints are read, and given, as the published code gives them."""

import pytest

from tarflow_jax.flow import TarFlow
from tarflow_jax.published.name import CheckpointName

NAMES = {
    'afhq_model_8_768_8_8_0.07.pth': CheckpointName('afhq', 8, 768, 8, 8, 'gaussian', 0.07),
    'imagenet64_model_2_768_8_8_0.05.pth': CheckpointName(
        'imagenet64', 2, 768, 8, 8, 'gaussian', 0.05
    ),
    'imagenet_model_4_1024_8_8_0.15.pth': CheckpointName(
        'imagenet', 4, 1024, 8, 8, 'gaussian', 0.15
    ),
    'imagenet64_model_2_768_8_8_uniform.pth': CheckpointName(
        'imagenet64', 2, 768, 8, 8, 'uniform', 0.0
    ),
    'my_model_zoo_model_1_64_2_1_1.00.pth': CheckpointName(
        'my_model_zoo', 1, 64, 2, 1, 'gaussian', 1.0
    ),
}


@pytest.mark.parametrize('name', NAMES)
def test_names_are_read_and_given(name):
    assert CheckpointName.parse(name) == CheckpointName.parse(f'/some/where/{name}') == NAMES[name]
    assert str(NAMES[name]) == name


@pytest.mark.parametrize(
    'name',
    [
        'cond.pth',
        'afhq_opt_8_768_8_8_0.07.pth',
        'afhq_model_8_768_8_0.07.pth',
        'afhq_model_8_768_8_8_0.07.pt',
        'afhq_model_8_768_8_8_0.07.pth.part',
        'afhq_model_8_768_8_8_gaussian.pth',
        '_model_8_768_8_8_0.07.pth',
    ],
)
def test_other_names_tell_nothing(name):
    assert CheckpointName.parse(name) is None


def test_the_name_of_a_model():
    model = TarFlow((8, 8, 1), 2, width=64, num_blocks=3, layers_per_block=2)
    name = CheckpointName.of(model, 'downsampled_imagenet/64x64', 'gaussian', 0.125)
    assert str(name) == 'downsampled_imagenet_64x64_model_2_64_3_2_0.12.pth'
