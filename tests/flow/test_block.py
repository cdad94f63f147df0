"""One block in its own token order, by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax.flow import TokenFlow

BATCH, TOKENS, FEATURES = 3, 4, 4


@pytest.fixture(scope='module', params=[False, True], ids=['scales', 'volume_preserving'])
def block_and_params(request, random_params):
    flow = TokenFlow(
        num_tokens=TOKENS,
        token_dim=FEATURES,
        width=8,
        head_dim=4,
        num_blocks=1,
        layers_per_block=2,
        num_classes=3,
        volume_preserving=request.param,
    )
    params = random_params(flow)['blocks']
    return flow.block(), jax.tree.map(lambda leaf: leaf[0], params)


@pytest.fixture(scope='module')
def tokens():
    return np.random.default_rng(1).normal(size=(BATCH, TOKENS, FEATURES)).astype(np.float32)


WITH_SCALES = pytest.mark.parametrize('block_and_params', [False], ids=['scales'], indirect=True)
LABELS = np.array([0, 2, -1], np.int32)


def test_a_token_depends_on_itself_and_the_tokens_before_it_only(block_and_params, tokens):
    """Exactly, as gradients that are zero; and on all of those."""
    block, params = block_and_params

    def forward(x):
        z, _ = block.apply({'params': params}, x[None], LABELS[:1])
        return z[0]

    jacobian = jax.jit(jax.jacrev(forward))(
        tokens[0]
    )  # token and feature out, token and feature in
    for t in range(TOKENS):
        assert not jacobian[t, :, t + 1 :].any()
        assert (jacobian[t, :, :, :][:, :t] != 0).all()
        own = jacobian[t, :, t]
        np.testing.assert_array_equal(own, np.diag(np.diag(own)))
        assert (np.diag(own) > 0).all()


def test_the_first_token_stays_as_it_is(block_and_params, tokens):
    block, params = block_and_params
    z, _ = jax.jit(block.apply)({'params': params}, tokens, LABELS)
    np.testing.assert_array_equal(z[:, 0], tokens[:, 0])
    assert (z[:, 1:] != tokens[:, 1:]).all()


def test_cached_steps_equal_the_pass_over_the_whole_sequence(block_and_params, tokens):
    block, params = block_and_params
    separate = {'params': block.separate_layers(params)}
    step = jax.jit(lambda *args: block.apply(separate, *args, method='step'))
    caches = block.empty_caches(BATCH, TOKENS - 1)
    z, log_det = [tokens[:, 0]], np.zeros(BATCH)
    for t in range(TOKENS - 1):
        position = jnp.int32(t)
        (shift, log_scale), caches = step(tokens[:, t, None], LABELS, position, caches, 1.0)
        z.append((tokens[:, t + 1] - shift[:, 0]) * np.exp(-log_scale[:, 0]))
        log_det -= log_scale.sum(axis=(1, 2))
    whole, whole_log_det = jax.jit(block.apply)({'params': params}, tokens, LABELS)
    np.testing.assert_allclose(np.stack(z, axis=1), whole, atol=1e-5)
    np.testing.assert_allclose(log_det, whole_log_det, atol=1e-5)


@WITH_SCALES
def test_every_row_may_have_an_attention_temperature_of_its_own(block_and_params, tokens):
    block, params = block_and_params
    separate = {'params': block.separate_layers(params)}
    step = jax.jit(lambda *args: block.apply(separate, *args, method='step'))

    def shift_at_position_1(temperature):
        caches = block.empty_caches(BATCH, TOKENS)
        _, caches = step(tokens[:, :1], LABELS, jnp.int32(0), caches, temperature)
        (shift, _), _ = step(tokens[:, 1:2], LABELS, jnp.int32(1), caches, temperature)
        return shift

    hot, cold = shift_at_position_1(jnp.full(BATCH, 3.0)), shift_at_position_1(jnp.ones(BATCH))
    mixed = shift_at_position_1(jnp.array([3.0, 1.0, 1.0]))
    assert (hot != cold).all()
    np.testing.assert_array_equal(mixed[0], hot[0])
    np.testing.assert_array_equal(mixed[1:], cold[1:])


@WITH_SCALES
def test_an_image_without_a_label_teaches_all_classes_alike(block_and_params, tokens):
    block, params = block_and_params

    def total(class_embed, labels):
        z, _ = block.apply({'params': {**params, 'class_embed': class_embed}}, tokens, labels)
        return (z**2).sum()

    gradient = jax.jit(jax.grad(total))
    unlabelled = gradient(params['class_embed'], jnp.full(BATCH, -1))
    assert unlabelled.any()
    np.testing.assert_array_equal(unlabelled, np.broadcast_to(unlabelled[:1], unlabelled.shape))
    labelled = gradient(params['class_embed'], jnp.full(BATCH, 1))
    assert labelled[1].any()
    assert not labelled[0].any()
    assert not labelled[2].any()


@WITH_SCALES
def test_parameters_cast_once_give_what_casting_at_every_use_gives(block_and_params, tokens):
    block, params = block_and_params
    block = block.clone(dtype=jnp.bfloat16)

    @jax.jit
    def step(params):
        caches = block.empty_caches(BATCH, TOKENS)
        args = (tokens[:, :1], LABELS, jnp.array(0), caches, jnp.ones(BATCH))
        separate = {'params': block.separate_layers(params)}
        return block.apply(separate, *args, method='step')

    cast = block.cast(params)
    jax.tree.map(np.testing.assert_array_equal, step(cast), step(params))
    sizes = [sum(x.nbytes for x in jax.tree.leaves(p['layers'])) for p in (cast, params)]
    assert sizes[0] < 0.6 * sizes[1]
