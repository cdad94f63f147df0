import jax
import numpy as np
import pytest

from tarflow_jax import class_log_probs
from tarflow_jax.data.dataset import ArraySplit
from tarflow_jax.errors import InputError
from tarflow_jax.flow import TarFlow
from tarflow_jax.likelihood import classify
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.likelihood.scores import noisy_images
from tarflow_jax.parallel.mesh import make_mesh

SIZES = dict(image_shape=(4, 4, 1), patch_size=2, width=8, head_dim=4, layers_per_block=1)
MODEL = TarFlow(**SIZES, num_blocks=2, num_classes=3)
UNCONDITIONAL = TarFlow(**SIZES, num_blocks=2)
NOISE = Noise('gaussian', 0.1, num_levels=17)
NUM_IMAGES = 13


@pytest.fixture(scope='module')
def params(random_params):
    return random_params(MODEL)


@pytest.fixture(scope='module')
def joint(params):
    """log p(images | y) [B, 3], by one call of the model a class."""

    @jax.jit
    def log_prob(images, labels):
        return MODEL.apply({'params': params}, images, labels, method='log_prob')

    def for_all_classes(images):
        columns = [log_prob(images, np.full(len(images), y)) for y in range(3)]
        return np.stack(columns, axis=1).astype(np.float64)

    return for_all_classes


def bayes(joint):
    joint = np.exp(joint - joint.max(axis=1, keepdims=True))
    return joint / joint.sum(axis=1, keepdims=True)


@pytest.fixture(scope='module')
def split():
    draws = np.random.default_rng(0)
    images = draws.integers(0, 17, (NUM_IMAGES, 4, 4, 1)).astype(np.uint8)
    return ArraySplit(images, draws.integers(0, 3, NUM_IMAGES).astype(np.int32))


def test_class_probabilities_follow_from_bayes_rule(params, joint, random_batch):
    images, _ = random_batch(MODEL, batch=5)
    log_probs = class_log_probs(MODEL, params, images)
    assert log_probs.shape == (5, 3)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(log_probs), bayes(joint(images)), atol=1e-5)
    assert np.ptp(log_probs) > 0.1
    in_bfloat16 = class_log_probs(MODEL.clone(dtype='bfloat16'), params, images)
    np.testing.assert_array_equal(in_bfloat16, log_probs)  # scores are in float32


@pytest.mark.parametrize('mesh_of_all', [False, True], ids=['one_device', 'eight_devices'])
def test_a_split_is_classified_by_the_mean_over_draws(
    params, joint, split, one_device, mesh_of_all
):
    scores = classify.score_split(
        MODEL,
        params,
        split,
        NOISE,
        make_mesh() if mesh_of_all else one_device,
        batch_size=4,
        num_draws=2,
        seed=3,
    )
    batch = {**split.__getitems__(range(NUM_IMAGES)), 'index': np.arange(NUM_IMAGES)}
    draws = [joint(noisy_images(NOISE, batch, 3, draw)) for draw in range(2)]
    probs = bayes(np.mean(draws, axis=0))
    labels = batch['label']
    assert scores['accuracy'] == pytest.approx(np.mean(probs.argmax(axis=1) == labels))
    assert 0 < scores['accuracy'] < 1
    surprise = -np.log(probs[np.arange(NUM_IMAGES), labels])
    assert scores['cross_entropy'] == pytest.approx(surprise.mean(), abs=1e-5)


def test_a_model_without_classes_cannot_classify(random_params, split, one_device):
    params = random_params(UNCONDITIONAL)
    with pytest.raises(InputError, match='no classes'):
        class_log_probs(UNCONDITIONAL, params, np.zeros((1, 4, 4, 1)))
    with pytest.raises(InputError, match=r'take it out of evaluate\.metrics'):
        classify.score_split(
            UNCONDITIONAL, params, split, NOISE, one_device, batch_size=4, num_draws=1, seed=0
        )


def test_what_is_no_image_is_refused(random_params):
    params = random_params(MODEL)
    images = np.zeros((1, 4, 4, 1), np.uint8)
    with pytest.raises(
        InputError, match=r'got uint8\. For levels 0\.\.255, take images / 127\.5 - 1'
    ):
        class_log_probs(MODEL, params, images)
    with pytest.raises(InputError, match='params are not those of the model'):
        class_log_probs(MODEL, {'params': params}, images)
    assert class_log_probs(MODEL, params, images.astype(float).tolist()).shape == (1, 3)
