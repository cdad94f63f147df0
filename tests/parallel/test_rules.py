"""Arrays over devices: the rules fit the parameters, and eight devices compute what one does."""

import math
import re

import jax
import numpy as np
import optax
import pytest

from tarflow_jax.errors import InputError
from tarflow_jax.flow import TarFlow
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.training.objective import Noise
from tarflow_jax.training.optimizer import make_optimizer
from tarflow_jax.training.state import init_state, make_train_step

MODEL = TarFlow(
    (4, 4, 1), 2, width=64, head_dim=32, num_blocks=2, layers_per_block=1, num_classes=3
)
# Not AdamW, which would divide the rounding of gradients that are zero by itself.
OPTIMIZER = optax.sgd(0.01, momentum=0.9)
MESHES = {
    'data': dict(data=8),
    'fsdp': dict(data=1, fsdp=8),
    'all_three': dict(data=2, fsdp=2, tensor=2),
}


def abstract_params(model=MODEL):
    images = np.zeros((1, *model.image_shape), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)['params']


def paths(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in flat]


def train_three_steps(mesh, params):
    """Parameters and losses of three steps, laid over the mesh as a run does it."""

    def init(params):
        state = init_state(jax.random.key(0), MODEL, OPTIMIZER, ema=True)
        return state.replace(params=params, ema_params=params)

    state_shardings = rules.shardings(jax.eval_shape(init, params), mesh)
    state = jax.jit(init, out_shardings=state_shardings)(params)
    train_step = jax.jit(
        make_train_step(
            MODEL,
            OPTIMIZER,
            Noise('gaussian', 0.1, num_levels=17),
            seed=0,
            drop_label=0.1,
            random_flip=True,
            ema_decay=0.9,
            window_steps=1,
        ),
        in_shardings=(state_shardings, rules.batch_sharding(mesh)),
        out_shardings=(state_shardings, rules.replicated(mesh)),
        donate_argnums=0,
    )
    draws = np.random.default_rng(0)
    losses = []
    for _ in range(3):
        batch = {
            'image': draws.integers(0, 17, (16, *MODEL.image_shape)).astype(np.uint8),
            'label': draws.integers(0, 3, 16).astype(np.int32),
        }
        state, report = train_step(state, jax.device_put(batch, rules.batch_sharding(mesh)))
        losses.append(float(report['loss']))
    return jax.device_get((state.params, state.ema_params)), losses


@pytest.fixture(scope='module')
def params():
    """Small random numbers everywhere: every gradient counts, and no scale explodes."""
    draws = np.random.default_rng(0)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            draws.normal(scale=0.05, size=leaf.shape) + (path[-1].key == 'scale')
        ).astype(np.float32),
        abstract_params(),
    )


@pytest.fixture(scope='module')
def by_one_device(one_device, params):
    return train_three_steps(one_device, params)


@pytest.mark.parametrize('name', MESHES)
def test_eight_devices_train_as_one_does(name, params, by_one_device):
    trained, losses = train_three_steps(make_mesh(**MESHES[name]), params)
    expected, expected_losses = by_one_device
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)

    def assert_close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())

    jax.tree.map(assert_close, trained, expected)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-4, trained[0], params)
    assert any(jax.tree.leaves(moved))


def test_fsdp_leaves_each_device_an_eighth_of_what_is_split():
    optimizer = make_optimizer(
        optax.constant_schedule(1e-3), b1=0.9, b2=0.95, weight_decay=0.0, clip_norm=1.0
    )
    mesh = make_mesh(data=1, fsdp=8)
    shapes = jax.eval_shape(
        lambda key: init_state(key, MODEL, optimizer, ema=True), jax.random.key(0)
    )

    shardings = rules.shardings(shapes, mesh)
    whole, share = 0, 0
    for path, leaf, sharding in zip(
        paths(shapes), jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True
    ):
        is_split = path.endswith(('kernel', 'embed'))
        here = math.prod(sharding.shard_shape(leaf.shape))
        assert here == (leaf.size // 8 if is_split else leaf.size), path
        whole, share = whole + leaf.size, share + here
    assert share < 0.15 * whole


def test_every_rule_names_parameters_and_none_is_named_by_two():
    names = paths(abstract_params())
    owners = {end: [n for n in names if re.search(f'{end}$', n)] for end, _ in rules.PARAMS}
    assert all(owners.values())
    named = [name for owned in owners.values() for name in owned]
    assert len(named) == len(set(named))
    assert [name for name in names if name.endswith('kernel') and name not in named] == []


def test_no_rule_splits_two_axes_of_an_array_over_one_axis_of_the_mesh():
    for _, spec in rules.PARAMS:
        axes = [axis for axis in spec if axis is not None]
        assert len(axes) == len(set(axes))


@pytest.mark.parametrize(
    ('change', 'mesh', 'message'),
    [
        (
            dict(width=12, head_dim=4),
            dict(data=1, fsdp=8),
            r'of shape \(.*12.*\) cannot be split over mesh\.fsdp=8: 12 is no multiple of it',
        ),
        (
            dict(width=24, head_dim=8),
            dict(data=4, fsdp=1, tensor=2),
            r'attention/.* cannot be split over mesh\.tensor=2: 3 is no multiple of it',
        ),
    ],
)
def test_sizes_that_the_mesh_cannot_split_are_refused(change, mesh, message):
    with pytest.raises(InputError, match=message):
        rules.shardings(abstract_params(MODEL.clone(**change)), make_mesh(**mesh))
