"""A flow over sequences that are no images: what other front ends build on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from tarflow_jax.errors import InputError
from tarflow_jax.flow import TokenFlow
from tarflow_jax.sampling.inverse import inverse

TINY = dict(width=8, head_dim=4, layers_per_block=1)
FLOWS = {
    'conditional': TokenFlow(7, 3, num_blocks=2, num_classes=3, **TINY),
    'volume_preserving': TokenFlow(4, 1, num_blocks=3, volume_preserving=True, **TINY),
}
CONDITIONAL = FLOWS['conditional']
BATCH = 4


@pytest.fixture(params=FLOWS, scope='module')
def flow(request):
    return FLOWS[request.param]


def random_tokens(flow, batch=BATCH):
    tokens = np.random.default_rng(0).normal(size=(batch, flow.num_tokens, flow.token_dim))
    labels = np.arange(batch, dtype=np.int32) % max(flow.num_classes, 1)
    labels[-1] = -1
    return tokens.astype(np.float32), labels


@functools.partial(jax.jit, static_argnames=('flow', 'method'))
def apply(flow, params, *args, method=None):
    return flow.apply({'params': params}, *args, method=method)


@functools.partial(jax.jit, static_argnums=0)
def jacobian(flow, params, tokens_TP, label):
    """d latents / d tokens of one sequence: [T, P, T, P]."""
    return jax.jacfwd(lambda x: flow.apply({'params': params}, x[None], label[None])[0][0])(
        tokens_TP
    )


def test_the_inverse_returns_the_tokens_before_every_block(flow, random_params):
    params = random_params(flow)
    tokens, labels = random_tokens(flow)
    latents, _ = apply(flow, params, tokens, labels, method='forward_blocks')
    invert = jax.jit(functools.partial(inverse, flow))
    inverted = invert(params, latents[-1], labels).tokens
    assert inverted.shape == latents.shape
    np.testing.assert_allclose(inverted[0], tokens, atol=1e-4)
    np.testing.assert_allclose(inverted[1:], latents[:-1], atol=1e-4)


def test_log_det_is_that_of_the_jacobian(flow, random_params):
    params = random_params(flow)
    tokens, labels = random_tokens(flow)
    _, log_det = apply(flow, params, tokens, labels)
    for row in (0, BATCH - 1):
        matrix = np.asarray(jacobian(flow, params, tokens[row], labels[row]), np.float64)
        size = flow.num_tokens * flow.token_dim
        sign, expected = np.linalg.slogdet(matrix.reshape(size, size))
        assert sign == 1
        np.testing.assert_allclose(log_det[row], expected, atol=1e-4)


def test_latents_stand_where_their_tokens_do(random_params):
    """One block depends on the past only; its reversal is undone in the latents."""
    flow = CONDITIONAL.clone(num_blocks=1)
    tokens, labels = random_tokens(flow)
    influence = np.any(jacobian(flow, random_params(flow), tokens[0], labels[0]) != 0, axis=(1, 3))
    np.testing.assert_array_equal(influence, np.tri(flow.num_tokens, dtype=bool))


def test_steps_with_a_cache_equal_the_pass_over_the_whole_sequence(random_params):
    """The inverse of one block, a step a token, without the sampler."""
    flow = CONDITIONAL.clone(num_blocks=1)
    params = random_params(flow)
    tokens, labels = random_tokens(flow)
    z_BTP, _ = apply(flow, params, tokens, labels)
    block, slice_of_block = flow.block(), jax.tree.map(lambda leaf: leaf[0], params['blocks'])
    separate = {'params': block.separate_layers(slice_of_block)}
    step = jax.jit(lambda *args: block.apply(separate, *args, method='step'))
    caches = block.empty_caches(BATCH, flow.num_tokens)
    x_BTP = [z_BTP[:, 0]]
    for t in range(flow.num_tokens - 1):
        last_B1P, position = x_BTP[-1][:, None], jnp.int32(t)
        (shift, log_scale), caches = step(last_B1P, labels, position, caches, 1.0)
        x_BTP.append(z_BTP[:, t + 1] * np.exp(log_scale[:, 0]) + shift[:, 0])
    np.testing.assert_allclose(np.stack(x_BTP, axis=1), tokens, atol=1e-5)


def test_a_new_flow_is_exactly_the_identity():
    flow = CONDITIONAL
    tokens, labels = random_tokens(flow)
    params = jax.jit(flow.init_params)(jax.random.key(0))
    latents, log_det = apply(flow, params, tokens, labels)
    np.testing.assert_array_equal(latents, tokens)
    np.testing.assert_array_equal(log_det, np.zeros(BATCH))


def test_training_learns_how_a_sequence_goes_on():
    """Of a random walk, tokens before tell a token up to its step; samples are such walks, too."""
    flow = TokenFlow(4, 1, num_blocks=1, **TINY)
    step_std = 0.3

    def random_walks(key, batch):
        steps = jax.random.normal(key, (batch, flow.num_tokens, 1))
        return jnp.cumsum(steps * jnp.full(steps.shape, step_std).at[:, 0].set(1.0), axis=1)

    def loss(params, walks):
        latents, log_det = flow.apply({'params': params}, walks)
        return -(jax.scipy.stats.norm.logpdf(latents).sum(axis=(1, 2)) + log_det).mean()

    optimizer = optax.adam(2e-2)

    @jax.jit
    def train(params):
        def step(carry, key):
            params, opt_state = carry
            gradient = jax.grad(loss)(params, random_walks(key, 64))
            updates, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        keys = jax.random.split(jax.random.key(0), 150)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return params

    params = train(flow.init_params(jax.random.key(1)))
    nats = jax.jit(loss)(params, random_walks(jax.random.key(2), 1000))
    entropy = stats.norm.entropy() + (flow.num_tokens - 1) * stats.norm.entropy(scale=step_std)
    assert entropy < nats < entropy + 0.5
    noise = jax.random.normal(jax.random.key(3), (1000, flow.num_tokens, 1))
    solution = jax.jit(functools.partial(inverse, flow))(params, noise, jnp.full(1000, -1))
    samples = solution.tokens[0]
    assert np.diff(samples, axis=1).std() == pytest.approx(step_std, rel=0.1)
    assert samples[:, 0].std() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(num_tokens=0), 'num_tokens must be at least 1; got 0'),
        (dict(token_dim=1.5), 'token_dim must be a whole number; got 1.5'),
        (dict(width=10), 'width=10, head_dim=4'),
        (dict(attention='splash'), 'needs a multiple of 128 tokens; got 7'),
        (dict(dtype='float16'), "dtype must be one of float32, bfloat16; got 'float16'"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        CONDITIONAL.clone(**change)


@pytest.mark.parametrize(
    ('tokens', 'labels', 'message'),
    [
        (np.zeros((2, 7, 4)), None, r'tokens of shape \[batch, 7, 3\]; got \[2, 7, 4\]'),
        (np.zeros((2, 7, 3), int), None, 'tokens must be floating-point numbers; got int64'),
        (np.zeros((2, 7, 3)), [3, 0], r'0\.\.2, or be -1 for no label; got \[3\]'),
        (np.zeros((2, 7, 3)), [0], r'shape \(2,\), one per row; got \(1,\)'),
    ],
)
def test_tokens_and_labels_that_do_not_fit_are_refused(tokens, labels, message, random_params):
    with pytest.raises(InputError, match=message):
        CONDITIONAL.apply({'params': random_params(CONDITIONAL)}, tokens, labels)
