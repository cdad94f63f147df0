"""The properties of a normalizing flow, and its labels, directions and precisions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tarflow_jax.errors import InputError
from tarflow_jax.flow import TarFlow

SIZES = dict(image_shape=(4, 4, 1), patch_size=2, width=8, head_dim=4, layers_per_block=1)
CONDITIONAL = TarFlow(**SIZES, num_blocks=2, num_classes=3)
UNCONDITIONAL = TarFlow(**SIZES, num_blocks=2)
VOLUME_PRESERVING = TarFlow(**SIZES, num_blocks=2, volume_preserving=True)


@functools.partial(jax.jit, static_argnames=('model', 'method', 'prior'))
def apply(model, params, *args, method=None, **kwargs):
    return model.apply({'params': params}, *args, method=method, **kwargs)


@functools.partial(jax.jit, static_argnums=0)
def jacobian(model, params, image, label):
    """Of one image's latents, as a matrix over its tokens' features in the image's order."""

    def forward(x):
        latents, _ = model.apply({'params': params}, model.unpatchify(x[None]), label[None])
        return model.patchify(latents)[0]

    return jax.jacfwd(forward)(model.patchify(image[None])[0])


def test_a_new_model_is_exactly_the_identity(random_batch):
    images, labels = random_batch(CONDITIONAL)
    params = jax.jit(CONDITIONAL.init)(jax.random.key(0), images)['params']
    latents, log_det = apply(CONDITIONAL, params, images, labels)
    np.testing.assert_array_equal(latents, images)
    np.testing.assert_array_equal(log_det, np.zeros(len(images)))


def test_log_det_is_that_of_the_jacobian(flow, forward_blocks, random_batch):
    model, params = flow
    images, labels = random_batch(model)
    _, log_dets = forward_blocks(model, params, images, labels)
    log_det = log_dets.sum(axis=0)
    for i in (0, len(images) - 1):
        matrix = np.asarray(jacobian(model, params, images[i], labels[i]), np.float64)
        tokens, features = matrix.shape[:2]
        sign, expected = np.linalg.slogdet(matrix.reshape(tokens * features, -1))
        assert sign == 1
        np.testing.assert_allclose(log_det[i], expected, atol=1e-4)
    is_affine = tokens > 1 and not model.volume_preserving
    np.testing.assert_array_equal(log_det != 0, is_affine)


def test_forward_is_the_last_of_the_blocks_and_the_sum_of_their_log_dets(
    random_params, forward_blocks, random_batch
):
    params = random_params(CONDITIONAL)
    images, labels = random_batch(CONDITIONAL)
    latents, log_det = apply(CONDITIONAL, params, images, labels)
    all_latents, all_log_dets = forward_blocks(CONDITIONAL, params, images, labels)
    assert all_latents.shape == (2, *images.shape)
    assert all_log_dets.shape == (2, len(images))
    np.testing.assert_allclose(all_latents[-1], latents, atol=1e-6)
    np.testing.assert_allclose(all_log_dets.sum(axis=0), log_det, atol=1e-5)


def test_blocks_alternate_in_direction(random_params, random_batch):
    """With one of the two blocks an identity, the other's direction shows in the Jacobian."""
    model = UNCONDITIONAL
    params = random_params(model)
    (image,), (label,) = random_batch(model, batch=1)

    def influence_of_only(block):
        keep = np.arange(model.num_blocks) == block
        proj_out = jax.tree.map(
            lambda leaf: jnp.where(keep.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0),
            params['blocks']['proj_out'],
        )
        only = {'blocks': {**params['blocks'], 'proj_out': proj_out}}
        return np.any(jacobian(model, only, image, label) != 0, axis=(1, 3))

    all_pairs = np.ones((4, 4), bool)
    np.testing.assert_array_equal(influence_of_only(0), np.tril(all_pairs))
    np.testing.assert_array_equal(influence_of_only(1), np.triu(all_pairs))


def test_a_result_does_not_depend_on_the_other_rows(random_params, random_batch):
    params = random_params(CONDITIONAL)
    images, labels = random_batch(CONDITIONAL)
    others, _ = random_batch(CONDITIONAL, seed=1)
    others[1], other_labels = images[1], (labels + 1) % 3
    other_labels[1] = labels[1]
    latents, log_det = apply(CONDITIONAL, params, images, labels)
    other_latents, other_log_det = apply(CONDITIONAL, params, others, other_labels)
    np.testing.assert_array_equal(latents[1], other_latents[1])
    np.testing.assert_array_equal(log_det[1], other_log_det[1])
    assert (latents[0] != other_latents[0]).any()


def test_no_labels_are_labels_of_minus_one(random_params, random_batch):
    params = random_params(CONDITIONAL)
    images, _ = random_batch(CONDITIONAL)
    without, _ = apply(CONDITIONAL, params, images)
    dropped, _ = apply(CONDITIONAL, params, images, np.full(len(images), -1))
    np.testing.assert_array_equal(without, dropped)


def test_a_dropped_label_stands_for_the_mean_of_the_classes(random_params, random_batch):
    params = random_params(CONDITIONAL)
    images, _ = random_batch(CONDITIONAL)
    dropped, _ = apply(CONDITIONAL, params, images, np.full(len(images), -1))
    table = params['blocks']['class_embed']
    mean = jnp.broadcast_to(table.mean(axis=1, keepdims=True), table.shape)
    of_mean = {'blocks': {**params['blocks'], 'class_embed': mean}}
    same, _ = apply(CONDITIONAL, of_mean, images, np.zeros(len(images), np.int32))
    np.testing.assert_allclose(dropped, same, atol=1e-5)


def test_labels_matter_to_a_conditional_model_only(random_params, random_batch):
    for model, matter in ((CONDITIONAL, True), (UNCONDITIONAL, False)):
        params = random_params(model)
        images, _ = random_batch(model)
        zeros, ones = (np.full(len(images), n, np.int32) for n in (0, 1))
        a, _ = apply(model, params, images, zeros)
        b, _ = apply(model, params, images, ones)
        assert (a != b).any() == matter


@pytest.mark.parametrize('unroll', ['blocks', 'all', True])
def test_a_loop_written_out_computes_what_the_scan_computes(random_params, random_batch, unroll):
    params = random_params(CONDITIONAL)
    images, labels = random_batch(CONDITIONAL)
    scanned = apply(CONDITIONAL, params, images, labels)
    unrolled = apply(CONDITIONAL.clone(unroll=unroll), params, images, labels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), scanned, unrolled)


@pytest.mark.parametrize('model', [CONDITIONAL, CONDITIONAL.token_flow()], ids=['images', 'tokens'])
def test_new_parameters_are_made_by_loops(model):
    scanned, unrolled = (
        str(jax.make_jaxpr(model.clone(unroll=unroll).init_params)(jax.random.key(0)))
        for unroll in ('none', 'all')
    )
    assert scanned == unrolled


def test_bfloat16_is_close_and_its_results_are_float32(random_params, random_batch):
    params = random_params(CONDITIONAL)
    images, labels = random_batch(CONDITIONAL)
    exact, exact_log_det = apply(CONDITIONAL, params, images, labels)
    latents, log_det = apply(CONDITIONAL.clone(dtype='bfloat16'), params, images, labels)
    assert latents.dtype == log_det.dtype == jnp.float32
    assert (latents != exact).any()
    np.testing.assert_allclose(latents, exact, atol=0.1)
    np.testing.assert_allclose(log_det, exact_log_det, atol=0.1)


def test_parameters_are_float32_whatever_the_transformer_computes_in():
    model = CONDITIONAL.clone(dtype='bfloat16')
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4, 4, 1)))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}


def test_log_prob_of_an_identity_is_the_normal_density(random_params, random_batch):
    params = random_params(VOLUME_PRESERVING)
    proj_out = jax.tree.map(jnp.zeros_like, params['blocks']['proj_out'])
    params = {**params, 'blocks': {**params['blocks'], 'proj_out': proj_out}}
    images, _ = random_batch(VOLUME_PRESERVING)
    for prior, std in (('standard', 1.0), ('tracked', np.sqrt(params['prior_var']))):
        log_prob = apply(VOLUME_PRESERVING, params, images, prior=prior, method='log_prob')
        expected = stats.norm.logpdf(images, scale=std).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


def test_log_prob_is_the_density_of_the_latents_plus_log_det(random_params, random_batch):
    params = random_params(CONDITIONAL)
    images, labels = random_batch(CONDITIONAL)
    latents, log_det = apply(CONDITIONAL, params, images, labels)
    log_prob = apply(CONDITIONAL, params, images, labels, method='log_prob')
    expected = stats.norm.logpdf(latents).sum(axis=(1, 2, 3)) + log_det
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(patch_size=3), 'patches of 3x3'),
        (dict(patch_size=0), 'patch_size must be at least 1; got 0'),
        (dict(width=10), 'width=10, head_dim=4'),
        (dict(head_dim=0), 'head_dim must be at least 1; got 0'),
        (dict(num_blocks=0), 'num_blocks must be at least 1; got 0'),
        (dict(layers_per_block=-1), 'layers_per_block must be at least 1; got -1'),
        (dict(patch_size=2.0), 'patch_size must be a whole number; got 2.0'),
        (dict(width='8'), "width must be a whole number; got '8'"),
        (dict(width=10**400), 'width must be at most 1048576; got a number of many digits'),
        (dict(num_classes=-1), r'num_classes must be at least 0 \(for none\); got -1'),
        (dict(num_classes=None), 'num_classes must be a whole number; got None'),
        (dict(num_blocks=True), 'num_blocks must be a whole number; got True'),
        (dict(image_shape='4,4,1'), "must be three positive whole numbers, .*; got '4,4,1'"),
        (dict(image_shape=(4.0, 4.0, 1.0)), r'whole numbers, .*; got \(4.0, 4.0, 1.0\)'),
        (dict(image_shape=('4', '4', '1')), r"whole numbers, .*; got \('4', '4', '1'\)"),
        (dict(image_shape=(4, 4)), r'whole numbers, .*; got \(4, 4\)'),
        (dict(image_shape=None), 'whole numbers, .*; got None'),
        (dict(image_shape=(4, 4, 2**40)), 'of at most 1048576; got'),
        (dict(volume_preserving='no'), "volume_preserving must be True or False; got 'no'"),
        (dict(unroll=1), 'unroll must be one of none, blocks, all; got 1'),
        (dict(dtype='float16'), "dtype must be one of float32, bfloat16; got 'float16'"),
        (dict(dtype=jnp.float16), "dtype must be one of float32, bfloat16; got 'float16'"),
        (dict(dtype=None), 'dtype must be one of float32, bfloat16; got None'),
        (dict(dtype=('f', 'g', 'h')), 'dtype must be one of float32, bfloat16; got '),
        (dict(remat=False), 'remat must be one of none, dots, full; got False'),
        (dict(remat='some'), "remat must be one of none, dots, full; got 'some'"),
        (dict(attention='flash'), "attention must be one of xla, cudnn, splash; got 'flash'"),
        (dict(attention='splash'), 'needs a multiple of 128 tokens; got 4'),
        (dict(attention='cudnn'), "needs dtype='bfloat16' and a head_dim that is a multiple of 8"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused_at_once(change, message):
    with pytest.raises(InputError, match=message):
        TarFlow(**{**SIZES, 'num_blocks': 2, **change})


@pytest.mark.parametrize(
    ('images', 'labels', 'message'),
    [
        ((2, 8, 8, 1), None, r'\[batch, 4, 4, 1\]; got \[2, 8, 8, 1\]'),
        ((4, 4, 1), None, r'got \[4, 4, 1\]'),
        ((2, 4, 4, 1), [0], r'shape \(2,\), one per row; got \(1,\)'),
        ((2, 4, 4, 1), [[0], [1]], r'got \(2, 1\)'),
        ((2, 4, 4, 1), [0, 3], r'0\.\.2, or be -1 for no label; got \[3\]'),
        ((2, 4, 4, 1), [-2, 0], r'got \[-2\]'),
        ((2, 4, 4, 1), np.array([0, 3]), r'0\.\.2, or be -1 for no label; got \[3\]'),
        ((2, 4, 4, 1), 3, r'shape \(2,\), one per row; got \(\)'),
        ((2, 4, 4, 1), [0, 0.7], r'labels must be whole numbers; got array\(\[0. , 0.7\]'),
        ((2, 4, 4, 1), [0, math.nan], 'labels must be whole numbers'),
        ((2, 4, 4, 1), [True, False], 'labels must be whole numbers'),
        ((2, 4, 4, 1), ['cat', 'dog'], r"labels must be an array of numbers; got \['cat', 'dog'\]"),
        ((2, 4, 4, 1), [[0], [1, 2]], 'labels must be an array of numbers'),
        ((2, 4, 4, 1), [10**30, 0], 'labels must be an array of numbers'),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(random_params, images, labels, message):
    params = random_params(CONDITIONAL)
    with pytest.raises(InputError, match=message):
        CONDITIONAL.apply({'params': params}, np.zeros(images, np.float32), labels)


@pytest.mark.parametrize('dtype', [np.uint8, np.int32, bool, np.complex64])
def test_images_that_are_no_floating_point_numbers_are_refused(random_params, dtype):
    params = random_params(CONDITIONAL)
    with pytest.raises(InputError, match=r'floating-point numbers; got .*/ 127.5 - 1\.'):
        CONDITIONAL.apply({'params': params}, np.zeros((2, 4, 4, 1), dtype))


@pytest.mark.parametrize('method', [None, 'log_prob'])
def test_lists_and_other_floats_are_what_they_say(random_params, random_batch, method):
    params = random_params(CONDITIONAL)
    images, labels = random_batch(CONDITIONAL)
    expected = apply(CONDITIONAL, params, images, labels, method=method)
    for same in (images.astype(np.float64), images.tolist()):
        result = CONDITIONAL.apply({'params': params}, same, labels.tolist(), method=method)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), result, expected)


def test_a_label_that_nobody_could_check_gives_nothing_that_looks_right(
    random_params, random_batch
):
    params = random_params(CONDITIONAL)
    images, _ = random_batch(CONDITIONAL)
    log_prob = apply(CONDITIONAL, params, images, np.array([-2, -1, 2, 3]), method='log_prob')
    np.testing.assert_array_equal(np.isnan(log_prob), [True, False, False, True])


def test_a_prior_that_there_is_not_is_refused(random_params, random_batch):
    images, _ = random_batch(VOLUME_PRESERVING)
    params = {'params': random_params(VOLUME_PRESERVING)}
    with pytest.raises(InputError, match="prior must be one of tracked, standard; got 'trackd'"):
        VOLUME_PRESERVING.apply(params, images, prior='trackd', method='log_prob')


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.dtype('bfloat16'), 'bfloat16'])
def test_a_dtype_is_a_name_or_a_type(dtype):
    model = CONDITIONAL.clone(dtype=dtype)
    assert model == CONDITIONAL.clone(dtype='bfloat16')
    assert model.dtype == 'bfloat16'


def test_sizes_are_numbers_of_any_library():
    model = TarFlow(
        **{**SIZES, 'image_shape': np.array([4, 4, 1]), 'width': np.int64(8)}, num_blocks=2
    )
    assert model == UNCONDITIONAL
    assert hash(model) == hash(UNCONDITIONAL)
