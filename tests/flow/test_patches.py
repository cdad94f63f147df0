import numpy as np
import pytest

from tarflow_jax.errors import InputError
from tarflow_jax.flow.patches import grid_shape, patchify, unpatchify


@pytest.mark.parametrize(
    ('image_shape', 'patch_size'),
    [((4, 4, 1), 1), ((4, 4, 3), 2), ((2, 6, 2), 2), ((8, 4, 3), 4), ((3, 9, 1), 3)],
)
def test_unpatchify_inverts_patchify(image_shape, patch_size):
    images = np.random.default_rng(0).normal(size=(3, *image_shape))
    tokens = patchify(images, patch_size)
    rows, columns = grid_shape(image_shape, patch_size)
    assert tokens.shape == (3, rows * columns, image_shape[2] * patch_size**2)
    np.testing.assert_array_equal(unpatchify(tokens, patch_size, image_shape), images)
    np.testing.assert_array_equal(
        patchify(unpatchify(tokens, patch_size, image_shape), patch_size), tokens
    )


def test_tokens_run_row_by_row_and_features_over_channel_row_column():
    row, column, channel = np.indices((4, 6, 3))
    image = 100 * channel + 10 * row + column  # a pixel tells where it is
    tokens = patchify(image[None], patch_size=2)[0]
    first_features = tokens[:, 0]
    np.testing.assert_array_equal(first_features, [0, 2, 4, 20, 22, 24])
    np.testing.assert_array_equal(tokens[1], [2, 3, 12, 13, 102, 103, 112, 113, 202, 203, 212, 213])


def test_a_patch_size_that_does_not_divide_is_refused_with_those_that_do():
    with pytest.raises(InputError, match=r'12x18 pixels .* 5x5.* \(it can be 1, 2, 3, 6\)'):
        patchify(np.zeros((1, 12, 18, 3)), patch_size=5)
    with pytest.raises(InputError, match='12x18'):  # one side is enough
        grid_shape((12, 18, 3), 4)
