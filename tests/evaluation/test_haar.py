import numpy as np
import pytest

from tarflow_jax.evaluation import haar


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize(
    ('shape', 'size'),
    [((8, 8, 1), 64), ((64, 64, 3), 624), ((256, 256, 3), 912), ((9, 6, 1), 48), ((3, 2, 3), 18)],
)
def test_how_many_there_are(shape, size):
    features = haar.features(images(2, *shape))
    assert features.shape == (2, size)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_the_finest_details_and_the_thumbnail_by_hand():
    (image,) = images(1, 8, 8, 1) / 255
    features = haar.features(images(1, 8, 8, 1))[0].reshape(4, 4, 4)
    corners = image[:2, :2, 0]
    (a, b), (c, d) = corners
    expected = [abs(a - b + c - d), abs(a + b - c - d), abs(a - b - c + d), a + b + c + d]
    np.testing.assert_allclose(features[:, 0, 0], np.array(expected) / 4, rtol=1e-5)


def test_a_flat_image_has_no_details():
    features = haar.features(np.full((1, 32, 32, 3), 51, np.uint8))[0]
    np.testing.assert_allclose(features[:-48], 0, atol=1e-6)
    np.testing.assert_allclose(features[-48:], 0.2, rtol=1e-5)


def test_blur_and_colour_are_seen():
    sharp = images(1, 32, 32, 3)
    blurred = sharp.reshape(1, 16, 2, 16, 2, 3).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    other_colour = sharp[..., ::-1]
    features = [np.asarray(haar.features(x.astype(np.uint8))) for x in (sharp, blurred)]
    assert features[0][:, :144].mean() > 0.1  # the finest level
    np.testing.assert_allclose(features[1][:, :144], 0, atol=1e-6)
    assert (haar.features(other_colour) != features[0]).any()
