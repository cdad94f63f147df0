"""The rules split every parameter, and refuse sizes that the mesh cannot split."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flows import FLOWS
from jax.sharding import PartitionSpec as P

from configs import afhq256
from tarflow_jax.build import make_model
from tarflow_jax.errors import InputError
from tarflow_jax.flow import TarFlow
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.training.optimizer import make_optimizer
from tarflow_jax.training.state import init_state

MODEL = TarFlow(
    (4, 4, 1), 2, width=64, head_dim=32, num_blocks=2, layers_per_block=1, num_classes=3
)


def abstract_params(model=MODEL):
    return model.param_shapes()


def paths(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in flat]


def state_shapes(model):
    optimizer = make_optimizer(
        optax.constant_schedule(1e-3), b1=0.9, b2=0.95, weight_decay=0.0, clip_norm=1.0
    )
    return jax.eval_shape(
        lambda key: init_state(key, model, optimizer, ema=True), jax.random.key(0)
    )


def bytes_per_device(tree, mesh):
    shares = jax.tree.map(
        lambda x, sharding: math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize,
        tree,
        rules.shardings(tree, mesh),
    )
    return sum(jax.tree.leaves(shares))


def test_fsdp_leaves_each_device_an_eighth_of_the_state():
    """Of the paper's model for AFHQ: parameters, their average and the optimizer's moments."""
    state = state_shapes(make_model(afhq256.get_config().model))
    whole = bytes_per_device(state, make_mesh(data=8))
    assert whole == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert whole / 8 < bytes_per_device(state, make_mesh(data=1, fsdp=8)) < 1.05 * whole / 8


@pytest.mark.parametrize('name', FLOWS)
def test_one_rule_names_each_array_of_a_state(name):
    """`shardings` refuses an array that no rule or several name."""
    state = state_shapes(FLOWS[name])
    specs = jax.tree.map(lambda s: s.spec, rules.shardings(state, make_mesh()))
    assert specs.params == specs.ema_params


def test_an_array_that_no_rule_names_is_refused():
    tree = {'blocks': {'new_kernel': np.zeros((2, 3))}}
    with pytest.raises(LookupError, match='0 rules name blocks/new_kernel'):
        rules.shardings(tree, make_mesh())


def test_every_rule_names_a_parameter():
    names = [name for model in FLOWS.values() for name in paths(abstract_params(model))]
    for end, _ in rules.PARAMS:
        assert any(re.search(f'(^|/)({end})$', name) for name in names), end


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
            r'of shape \(.*12.*\) cannot be split over mesh\.fsdp=8: 12 is not a multiple of it',
        ),
        (
            dict(width=24, head_dim=8),
            dict(data=4, fsdp=1, tensor=2),
            r'attention/.* cannot be split over mesh\.tensor=2: 3 is not a multiple of it',
        ),
    ],
)
def test_sizes_that_the_mesh_cannot_split_are_refused(change, mesh, message):
    with pytest.raises(InputError, match=message):
        rules.shardings(abstract_params(MODEL.clone(**change)), make_mesh(**mesh))


def test_a_rule_may_split_a_dimension_over_two_axes(monkeypatch):
    monkeypatch.setattr(rules, 'PARAMS', (('table', P(('fsdp', 'tensor'))),))
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    sharding = rules.shardings({'table': jnp.zeros((16, 3))}, mesh)['table']
    assert sharding.shard_shape((16, 3)) == (2, 3)
    with pytest.raises(InputError, match=r'mesh\.fsdp x mesh\.tensor=8: 12 is not a multiple'):
        rules.shardings({'table': jnp.zeros((12, 3))}, mesh)


def test_moments_are_split_over_data_along_the_first_axis_that_it_divides():
    mesh = make_mesh(data=8)
    shapes = {'mlp': {'up': {'kernel': jnp.zeros((2, 1, 16, 64)), 'bias': jnp.zeros((2, 1, 64))}}}
    odd = {'mlp': {'up': {'kernel': jnp.zeros((2, 1, 12, 60))}}}
    whole = rules.shardings(shapes, mesh)
    split = rules.split_over_data(shapes, whole)['mlp']['up']
    assert split['kernel'].spec == P(None, None, 'data')
    assert split['bias'] == whole['mlp']['up']['bias']
    whole = rules.shardings(odd, mesh)
    assert rules.split_over_data(odd, whole) == whole
