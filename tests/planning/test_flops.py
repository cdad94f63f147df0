"""Model FLOPs by formula."""

import jax
import numpy as np
import pytest

from tarflow_jax.flow import TarFlow
from tarflow_jax.planning import costs, flops, hlo


# Sizes of the published models, and what their forward pass takes an image in TFLOP, counted by
# hand over all pairs of tokens.
@pytest.mark.parametrize(
    ('image', 'patch', 'width', 'expected'),
    [
        ((64, 64, 3), 2, 768, 1.13),
        ((64, 64, 3), 2, 1024, 1.92),
        ((64, 64, 3), 4, 1024, 0.43),
        ((128, 128, 3), 4, 1024, 1.93),
        ((256, 256, 3), 8, 768, 1.14),
    ],
)
def test_published_sizes(image, patch, width, expected):
    model = TarFlow(image, patch, width, num_blocks=8, layers_per_block=8)
    assert flops.forward_flops(model) / 1e12 == pytest.approx(expected, abs=0.006)
    assert flops.train_flops(model) == 3 * flops.forward_flops(model)


@pytest.mark.parametrize('volume_preserving', [False, True])
def test_equals_what_xla_counts(volume_preserving):
    model = TarFlow(
        (8, 8, 2), 2, 64, num_blocks=2, layers_per_block=3, head_dim=32, num_classes=5,
        volume_preserving=volume_preserving, unroll='all',
    )  # fmt: skip
    params = model.param_shapes()
    images = jax.ShapeDtypeStruct((4, 8, 8, 2), np.float32)
    labels = jax.ShapeDtypeStruct((4,), np.int32)

    @jax.jit
    def forward(params, images, labels):
        return model.apply({'params': params}, images, labels)

    compiled = forward.lower(params, images, labels).compile()
    executed = hlo.executed(hlo.parse(compiled.as_text()))
    counted = sum(times * costs.flops(instruction)[0] for instruction, times in executed)
    assert counted == 4 * flops.forward_flops(model)
    # XLA's own count has the additions and multiplications of everything else in it.
    whole = compiled.cost_analysis()['flops']
    assert counted < whole < 1.3 * counted
