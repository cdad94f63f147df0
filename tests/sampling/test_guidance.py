import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax import sample
from tarflow_jax.errors import InputError
from tarflow_jax.flow import TarFlow
from tarflow_jax.sampling.draw import draw
from tarflow_jax.sampling.guidance import Guidance
from tarflow_jax.trained_flow import TrainedFlow

SIZES = dict(patch_size=2, width=8, head_dim=4, layers_per_block=1)
# Two tokens, one block: the first stays as it is, the second is mapped as the first one says.
ONE_STEP = TarFlow((2, 4, 1), num_blocks=1, num_classes=3, **SIZES)
CONDITIONAL = TarFlow((4, 4, 1), num_blocks=2, num_classes=3, **SIZES)
UNCONDITIONAL = TarFlow((4, 4, 1), num_blocks=2, **SIZES)


@functools.partial(jax.jit, static_argnums=0)
def affine_of_second_token(model, params, first_BP, labels):
    block = model.token_flow().block()
    params = block.separate_layers(jax.tree.map(lambda leaf: leaf[0], params['blocks']))
    args = (first_BP[:, None], labels, jnp.int32(0), block.empty_caches(len(labels), 2), 1.0)
    affine, _ = block.apply({'params': params}, *args, method='step')
    return jax.tree.map(lambda p_B1P: p_B1P[:, 0], affine)


@pytest.mark.parametrize('guide', ['both', 'scale', 'shift'])
def test_guidance_pushes_only_what_it_guides_away_from_the_unguided_pass(
    guide, random_params, random_batch
):
    params = random_params(ONE_STEP)
    noise, _ = random_batch(ONE_STEP, batch=3)
    labels = np.arange(3, dtype=np.int32)
    tokens = ONE_STEP.patchify(noise)
    shift, log_scale = affine_of_second_token(ONE_STEP, params, tokens[:, 0], labels)
    free_shift, free_log_scale = affine_of_second_token(
        ONE_STEP, params, tokens[:, 0], np.full(3, -1, np.int32)
    )
    weight = 1.5
    if guide != 'scale':
        shift = shift + weight * (shift - free_shift)
    if guide != 'shift':
        log_scale = log_scale + weight * (log_scale - free_log_scale)
    expected = tokens[:, 1] * np.exp(log_scale) + shift

    images = sample(ONE_STEP, params, noise, labels, guidance=weight, guide=guide)
    np.testing.assert_allclose(ONE_STEP.patchify(images)[:, 1], expected, atol=1e-5)
    np.testing.assert_array_equal(ONE_STEP.patchify(images)[:, 0], tokens[:, 0])


def test_no_weight_is_no_guidance_and_little_weight_is_little(random_params, random_batch):
    params = random_params(CONDITIONAL)
    noise, labels = random_batch(CONDITIONAL)
    plain = sample(CONDITIONAL, params, noise, labels)
    none = sample(
        CONDITIONAL, params, noise, labels, guidance=0, guide='scale', attention_temperature=2.0
    )
    np.testing.assert_array_equal(none, plain)
    little = sample(CONDITIONAL, params, noise, labels, guidance=1e-7)
    np.testing.assert_allclose(little, plain, atol=1e-5)
    much = sample(CONDITIONAL, params, noise, labels, guidance=1.0)
    assert np.abs(much[0] - plain[0]).max() > 0.01


def test_an_image_without_a_label_is_not_guided(random_params, random_batch):
    """At temperature 1 both passes are then the same."""
    params = random_params(CONDITIONAL)
    noise, _ = random_batch(CONDITIONAL)
    guided = sample(CONDITIONAL, params, noise, np.full(len(noise), -1), guidance=2.0)
    np.testing.assert_allclose(guided, sample(CONDITIONAL, params, noise), atol=1e-5)


def test_a_temperature_guides_a_model_without_classes(random_params, random_batch):
    params = random_params(UNCONDITIONAL)
    noise, _ = random_batch(UNCONDITIONAL)
    plain = sample(UNCONDITIONAL, params, noise)
    guided = sample(UNCONDITIONAL, params, noise, guidance=1.0, attention_temperature=0.5)
    assert np.abs(guided - plain).max() > 1e-4


@pytest.mark.parametrize('anneal', [False, True])
def test_annealing_lets_the_weight_grow_from_token_to_token(anneal):
    num_tokens, weight = 5, 2.0
    guidance = Guidance.checked(3, guidance=weight, anneal_guidance=anneal)
    # Of four tokens: the guided pass, the unguided one.
    ones_then_zeros = jnp.stack([jnp.ones((4, 1)), jnp.zeros((4, 1))])
    position_T1 = jnp.arange(4)[:, None]
    guided = guidance.combine((ones_then_zeros, ones_then_zeros), position_T1, num_tokens)
    ramp = np.array([1, 2, 3, 4]) / 4 if anneal else np.ones(4)
    for part in guided:
        np.testing.assert_allclose(np.ravel(part), 1 + weight * ramp)


@pytest.mark.parametrize(
    ('num_classes', 'arguments', 'message'),
    [
        (3, dict(guidance=-1), 'guidance must be at least 0; got -1'),
        (3, dict(guidance=float('nan')), 'guidance must be at least 0; got nan'),
        (3, dict(guidance=float('inf')), 'guidance must be at most 1000; got inf'),
        (3, dict(guidance=1e30), r'guidance must be at most 1000; got 1e\+30'),
        (3, dict(guidance='1'), "guidance must be a number; got '1'"),
        (3, dict(guidance=True), 'guidance must be a number; got True'),
        (3, dict(guide='scales'), "one of both, scale, shift; got 'scales'"),
        (3, dict(guide=None), 'one of both, scale, shift; got None'),
        (3, dict(anneal_guidance='no'), "anneal_guidance must be True or False; got 'no'"),
        (3, dict(guidance=1, attention_temperature=0), 'must be above 0; got 0'),
        (3, dict(attention_temperature=1e-45), 'must be above 0; got 1e-45'),
        (3, dict(attention_temperature=float('inf')), 'must be at most 1000; got inf'),
        (0, dict(guidance=1.5), 'guidance=1.5 would change nothing: the model has no classes'),
        (1, dict(guidance=1.5), 'guidance=1.5 would change nothing: the model has one class'),
        (3, dict(guidance=1.5), 'guidance=1.5 would change nothing: no image has a label'),
    ],
)
def test_guidance_that_makes_no_sense_is_refused(num_classes, arguments, message, random_params):
    model = CONDITIONAL.clone(num_classes=num_classes)
    with pytest.raises(InputError, match=message):
        sample(model, random_params(model), np.zeros((1, 4, 4, 1), np.float32), **arguments)


@pytest.mark.parametrize('labels', [-1, [-1, -1]])
def test_guidance_of_samples_without_labels_is_refused(labels, random_params):
    flow = TrainedFlow(CONDITIONAL, random_params(CONDITIONAL))
    with pytest.raises(InputError, match='no image has a label'):
        flow.sample(0, 2, labels=labels, guidance=1.0)
    flow.sample(0, 2, labels=[-1, 0], guidance=1.0, attention_temperature=1.0)
    rows = draw(*flow, jax.random.key(0), np.array([-1, 0]), batch_size=1, guidance=1.0)
    assert len(rows) == 2  # a batch without labels is no mistake


def test_a_single_token_has_nothing_to_guide(random_params):
    model = CONDITIONAL.clone(patch_size=4)
    noise, labels = np.ones((2, 4, 4, 1), np.float32), np.array([0, 1])
    images, residual = sample(
        model, random_params(model), noise, labels, guidance=1.0, return_residual=True
    )
    np.testing.assert_array_equal(images, noise)
    np.testing.assert_array_equal(residual, [0, 0])
