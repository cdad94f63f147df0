"""Eight devices compute what one does, however they share the work."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tarflow_jax.flow import TarFlow
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.sampling.denoise import denoise
from tarflow_jax.sampling.sample import sample
from tarflow_jax.training.checkpoint import Checkpoints
from tarflow_jax.training.optimizer import make_optimizer
from tarflow_jax.training.state import init_state
from tarflow_jax.training.train_step import make_train_step

MODEL = TarFlow(
    (8, 8, 1), 2, width=64, head_dim=16, num_blocks=2, layers_per_block=2, num_classes=3
)
MESHES = {
    'data': dict(data=8),
    'fsdp': dict(data=1, fsdp=8),
    'all_three': dict(data=2, fsdp=2, tensor=2),
}
STEPS = 5
BATCH = 32  # no array but the hidden features has as many rows and columns as theirs
# AdamW divides the rounding of a gradient that is zero, a key's bias for one, by itself: arrays one
# by one are compared after SGD.
OPTIMIZERS = {
    'sgd': optax.sgd(0.1, momentum=0.9),
    'adamw': make_optimizer(
        optax.constant_schedule(1e-3), b1=0.9, b2=0.95, weight_decay=1e-4, clip_norm=1.0
    ),
}


@pytest.fixture(scope='module')
def params():
    """Small random numbers everywhere: every gradient counts, and no scale explodes."""
    draws = np.random.default_rng(0)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            draws.normal(scale=0.05, size=leaf.shape) + (path[-1].key == 'scale')
        ).astype(np.float32),
        MODEL.param_shapes(),
    )


def make_batch(step):
    draws = np.random.default_rng(step)
    return {
        'image': draws.integers(0, 17, (BATCH, *MODEL.image_shape)).astype(np.uint8),
        'label': draws.integers(-1, 3, BATCH).astype(np.int32),
    }


def place(mesh, tree):
    return jax.device_put(tree, rules.batch_sharding(mesh))


def train(mesh, params, optimizer, model=MODEL, **settings):
    """The state and the losses after a few steps, laid over the mesh as a run does it."""

    def init(params):
        state = init_state(jax.random.key(0), model, optimizer, ema=True)
        return state.replace(params=params, ema_params=params)

    state_shardings = rules.shardings(jax.eval_shape(init, params), mesh)
    settings = (
        dict(seed=0, drop_label=0.1, random_flip=True, ema_decay=0.9, window_steps=1) | settings
    )
    noise = Noise('gaussian', 0.1, num_levels=17)
    train_step = jax.jit(
        make_train_step(model, optimizer, noise, **settings),
        in_shardings=(state_shardings, rules.batch_sharding(mesh)),
        out_shardings=(state_shardings, rules.replicated(mesh)),
        donate_argnums=0,
    )
    losses = []
    with rules.activation_sharding(mesh):
        state = jax.jit(init, out_shardings=state_shardings)(params)
        for step in range(STEPS):
            state, report = train_step(state, place(mesh, make_batch(step)))
            losses.append(float(report['loss']))
    return state, losses


def guided_samples(mesh, params):
    noise = np.random.default_rng(0).normal(size=(BATCH, *MODEL.image_shape)).astype(np.float32)
    noise, labels = place(mesh, (noise, make_batch(0)['label']))
    params = jax.device_put(params, rules.shardings(params, mesh))
    with rules.activation_sharding(mesh):
        images = sample(MODEL, params, noise, labels, guidance=1.5, anneal_guidance=True)
        return jax.device_get((images, denoise(MODEL, params, images, labels, noise_std=0.1)))


def assert_arrays_close(a, b):
    """Within 1e-5 of the largest number of each array."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()), a, b
    )


def distance(a, b):
    """Of two trees, relative to the norm of the second."""
    return optax.tree.norm(jax.tree.map(jnp.subtract, a, b)) / optax.tree.norm(b)


@pytest.fixture(scope='module')
def by_one_device(one_device, params):
    trained = {name: train(one_device, params, opt) for name, opt in OPTIMIZERS.items()}
    return {
        'samples': guided_samples(one_device, params),
        **{
            name: (jax.device_get((state.params, state.ema_params)), losses)
            for name, (state, losses) in trained.items()
        },
    }


@pytest.fixture(scope='module', params=MESHES)
def mesh(request):
    return make_mesh(**MESHES[request.param])


@pytest.fixture(scope='module')
def all_three():
    return make_mesh(**MESHES['all_three'])


def test_the_same_parameters_after_steps_of_sgd(mesh, params, by_one_device):
    state, losses = train(mesh, params, OPTIMIZERS['sgd'])
    expected, expected_losses = by_one_device['sgd']
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_arrays_close(jax.device_get((state.params, state.ema_params)), expected)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-4, expected[0], params)
    assert any(jax.tree.leaves(moved))


def test_the_same_parameters_after_steps_of_adamw(all_three, params, by_one_device):
    state, losses = train(all_three, params, OPTIMIZERS['adamw'])
    (expected, _), expected_losses = by_one_device['adamw']
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert distance(jax.device_get(state.params), expected) < 1e-5
    assert distance(expected, params) > 1e-3


@pytest.mark.parametrize('shape', ['fsdp', 'all_three'])
def test_the_same_samples(shape, params, by_one_device):
    mesh = make_mesh(**MESHES[shape])
    assert_arrays_close(guided_samples(mesh, params), by_one_device['samples'])


@pytest.mark.parametrize(
    ('shape', 'remat', 'settings'),
    [
        ('data', 'none', dict(separate=True, folded=True, microbatches=2)),
        ('fsdp', 'full', dict(gather='step')),
        ('all_three', 'dots', dict(microbatches=4)),
        ('all_three', 'full', dict(folded=True, gather='step', microbatches=2)),
    ],
)
def test_other_ways_to_the_same_step(shape, remat, settings, params, by_one_device):
    """In parts, by each device, of folded norms; activations again; parameters once a step."""
    mesh, model = make_mesh(**MESHES[shape]), MODEL.clone(remat=remat)
    state, losses = train(mesh, params, OPTIMIZERS['sgd'], model, **settings)
    expected, expected_losses = by_one_device['sgd']
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_arrays_close(jax.device_get((state.params, state.ema_params)), expected)


def test_activations_are_split(params):
    """Nothing that a device computes has the size of the whole batch's hidden features."""
    mesh = make_mesh(**MESHES['all_three'])
    optimizer = OPTIMIZERS['sgd']
    shapes = jax.eval_shape(
        lambda key: init_state(key, MODEL, optimizer, ema=False), jax.random.key(0)
    )
    noise = Noise('gaussian', 0.1, num_levels=17)
    step = make_train_step(
        MODEL, optimizer, noise, seed=0, drop_label=0.1, random_flip=True, ema_decay=0.0,
        window_steps=1,
    )  # fmt: skip
    shardings = (rules.shardings(shapes, mesh), rules.batch_sharding(mesh))
    with rules.activation_sharding(mesh):
        text = (
            jax.jit(step, in_shardings=shardings).lower(shapes, make_batch(0)).compile().as_text()
        )
    hidden, rows = 4 * MODEL.width, BATCH * 16
    assert f'[{rows // 4},{hidden // 2}]' in text  # rows over data and fsdp, features over tensor
    assert f'[{BATCH},16,' not in text
    assert f'[{rows},' not in text
    assert f',{hidden}]' not in text.replace(f'[2,2,64,{hidden}]', '')


def test_initialisation_makes_only_the_share_of_each_device():
    model = TarFlow((32, 32, 3), 4, width=512, num_blocks=2, layers_per_block=2)
    mesh = make_mesh(**MESHES['fsdp'])
    optimizer = OPTIMIZERS['adamw']

    def init(key):
        return init_state(key, model, optimizer, ema=True)

    shapes = jax.eval_shape(init, jax.random.key(0))
    with rules.activation_sharding(mesh):
        compiled = (
            jax.jit(init, out_shardings=rules.shardings(shapes, mesh))
            .lower(jax.random.key(0))
            .compile()
        )
    whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    memory = compiled.memory_analysis()
    assert memory.output_size_in_bytes < 1.05 * whole / 8
    assert memory.temp_size_in_bytes < whole / 8


def test_a_checkpoint_of_any_mesh_restores_on_any_other(one_device, tmp_path):
    optimizer = OPTIMIZERS['adamw']
    meshes = [one_device, *(make_mesh(**MESHES[name]) for name in ('fsdp', 'all_three'))]

    def init(key):
        return init_state(key, MODEL, optimizer, ema=True)

    shapes = jax.eval_shape(init, jax.random.key(0)).to_items()
    expected = jax.device_get(jax.jit(init)(jax.random.key(0)).to_items())
    for number, mesh in enumerate(meshes):
        items = jax.device_put(expected, rules.shardings(shapes, mesh))
        with contextlib.closing(Checkpoints(tmp_path / str(number))) as checkpoints:
            checkpoints.save(0, items)
            checkpoints.wait()
        other = meshes[number - 1]
        abstract = rules.with_shardings(shapes, rules.shardings(shapes, other))
        with contextlib.closing(Checkpoints(tmp_path / str(number), read_only=True)) as checkpoints:
            restored = checkpoints.restore(0, abstract)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), expected)
        kernel = restored['params']['blocks']['layers']['mlp']['up']['kernel']
        assert kernel.sharding.mesh == other
