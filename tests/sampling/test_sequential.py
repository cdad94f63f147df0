"""Sampling inverts scoring."""

import jax
import numpy as np
import pytest

from tarflow_jax import sample
from tarflow_jax.errors import InputError
from tarflow_jax.flow import TarFlow

MODEL = TarFlow((4, 4, 1), 2, width=8, head_dim=4, num_blocks=2, layers_per_block=1, num_classes=3)


@pytest.fixture(scope='module')
def params(random_params):
    return random_params(MODEL)


def test_sampling_inverts_the_flow_block_by_block(flow, forward_blocks, random_batch):
    model, params = flow
    images, labels = random_batch(model)
    latents, _ = forward_blocks(model, params, images, labels)
    noise = latents[-1]
    if model.volume_preserving:
        noise = noise / np.sqrt(params['prior_var'])[None]
    sequence = sample(model, params, noise, labels, return_sequence=True)
    assert sequence.shape == (model.num_blocks + 1, *images.shape)
    np.testing.assert_allclose(sequence[-1], images, atol=1e-4)
    np.testing.assert_array_equal(sequence[0], noise)
    np.testing.assert_allclose(sequence[1:-1], latents[:-1][::-1], atol=1e-4)


@pytest.mark.parametrize('method', ['sequential', 'parallel'])
def test_one_image_alone_is_as_in_a_batch(method, params, random_batch):
    """Its cache has another shape."""
    noise, labels = random_batch(MODEL)
    expected = sample(MODEL, params, noise, labels)
    alone = sample(MODEL, params, noise[2:3], labels[2:3], method=method, tolerance=0)
    np.testing.assert_allclose(alone[0], expected[2], atol=1e-5)


def test_a_sample_does_not_depend_on_the_other_rows(params, random_batch):
    noise, labels = random_batch(MODEL)
    others, _ = random_batch(MODEL, seed=1)
    others[2] = noise[2]
    ours, theirs = (sample(MODEL, params, n, labels) for n in (noise, others))
    np.testing.assert_array_equal(ours[2], theirs[2])
    assert (ours[0] != theirs[0]).any()


def test_no_labels_are_labels_of_minus_one(params, random_batch):
    noise, labels = random_batch(MODEL)
    without = sample(MODEL, params, noise)
    np.testing.assert_array_equal(without, sample(MODEL, params, noise, np.full(4, -1)))
    assert (without[0] != sample(MODEL, params, noise, labels)[0]).any()


def test_the_prior_temperature_scales_the_noise(params, random_batch):
    noise, labels = random_batch(MODEL)
    cool = sample(MODEL, params, noise, labels, prior_temperature=0.5)
    np.testing.assert_array_equal(cool, sample(MODEL, params, noise / 2, labels))


def test_other_inputs_do_not_compile_again(params, random_batch, caplog):
    noise, labels = random_batch(MODEL)

    def programs_compiled(batch, **arguments):
        caplog.clear()
        with jax.log_compiles():
            sample(MODEL, params, noise[:batch], labels[:batch], **arguments)
        return sum('Compiling jit(_sample)' in record.message for record in caplog.records)

    assert programs_compiled(batch=3, guidance=1.5, attention_temperature=0.7) == 1
    assert programs_compiled(batch=3, guidance=0.3, attention_temperature=1.2) == 0
    assert programs_compiled(batch=3, guidance=2, prior_temperature=0.9) == 0


@pytest.mark.parametrize(
    ('noise', 'labels', 'arguments', 'message'),
    [
        ((4, 4, 4), None, {}, r'\[batch, 4, 4, 1\]; got \[4, 4, 4\]'),
        ((2, 4, 4, 3), None, {}, r'got \[2, 4, 4, 3\]'),
        ((2, 4, 4, 1), [0, 3], {}, r'lie in 0\.\.2, or be -1 for no label; got \[3\]'),
        ((2, 4, 4, 1), [0, -5], {}, r'got \[-5\]'),
        ((2, 4, 4, 1), [0, 1, 2], {}, r'shape \(2,\), one per row; got \(3,\)'),
        ((2, 4, 4, 1), None, dict(prior_temperature=-1), 'at least 0; got -1'),
        ((2, 4, 4, 1), None, dict(prior_temperature=float('nan')), 'at least 0; got nan'),
        ((2, 4, 4, 1), None, dict(prior_temperature=float('inf')), 'at most 100; got inf'),
        ((2, 4, 4, 1), None, dict(return_sequence='no'), "must be True or False; got 'no'"),
        ((2, 4, 4, 1), None, dict(noise=[[1], [1, 2]]), 'noise must be an array of numbers'),
        ((2, 4, 4, 1), None, dict(noise=None), 'noise must be an array of numbers; got None'),
        ((2, 4, 4, 1), None, dict(noise=np.zeros((2, 4, 4, 1), int)), 'noise must be floating'),
        ((2, 4, 4, 1), None, dict(model='digits'), "model must be a TarFlow; got 'digits'"),
        ((2, 4, 4, 1), None, dict(params={}), 'params are not those of the model: blocks'),
    ],
)
def test_what_the_model_cannot_serve_is_refused(params, noise, labels, arguments, message):
    labels = None if labels is None else np.array(labels)
    sound = dict(model=MODEL, params=params, noise=np.zeros(noise, np.float32), labels=labels)
    with pytest.raises(InputError, match=message):
        sample(**{**sound, **arguments})


def test_parameters_of_another_model_are_told(params, random_params):
    other = random_params(MODEL.clone(width=16))
    message = r'params are not those of the model: blocks/\S+ is \(2, .*, not \(2, .* `load`'
    with pytest.raises(InputError, match=message):
        sample(MODEL, other, np.zeros((1, 4, 4, 1)))
    with pytest.raises(InputError, match='params/blocks/'):
        sample(MODEL, {'params': params}, np.zeros((1, 4, 4, 1)))


def test_lists_are_arrays(params, random_batch):
    noise, labels = random_batch(MODEL)
    images = sample(MODEL, params, noise, labels)
    same = sample(MODEL, params, noise.tolist(), labels.tolist())
    np.testing.assert_array_equal(same, images)
