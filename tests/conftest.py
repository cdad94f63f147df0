"""Eight CPU devices for every test; shapes that broadcast by accident are errors."""

import functools
import gc
import os
import signal

# Before JAX starts, and for the processes that tests start.
os.environ['JAX_PLATFORMS'] = 'cpu'
# Tests compile many programs and run each a few times: compile five times as fast, run slower.
os.environ['XLA_FLAGS'] = ' '.join(
    [
        os.environ.get('XLA_FLAGS', ''),
        '--xla_backend_optimization_level=0',
        '--xla_cpu_use_fusion_emitters=false',
        '--xla_cpu_parallel_codegen_split_count=1',
    ]
)
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

# Several processes of tests share the cores: threads of LAPACK would wait for one another.
os.environ['OPENBLAS_NUM_THREADS'] = '1'

import jax
import numpy as np
import pytest
from flows import FLOWS
from jax.sharding import Mesh

from tarflow_jax.parallel.mesh import AXES
from tarflow_jax.training.checkpoint import quiet_orbax

# Background jobs ignore these signals, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
gc.set_threshold(100_000, 20, 20)  # tracing makes objects that live
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_collection_finish():
    gc.freeze()  # modules and tests, which would be looked through again and again


@pytest.fixture(scope='session', autouse=True)
def without_echoes():
    """As in the program: threads of a read that failed may end during a later test."""
    undo = quiet_orbax()
    yield
    undo()


@pytest.fixture(scope='session')
def random_params():
    """Makes parameters as training might leave them: nothing is zero, no two are equal."""

    @functools.cache
    def make(model, seed=0):
        draws = np.random.default_rng(seed)

        def draw(path, leaf):
            values = draws.normal(scale=0.3, size=leaf.shape).astype(np.float32)
            if path[-1].key == 'prior_var':
                return np.exp(values)
            if path[-2].key == 'proj_out':
                return values / 8  # shifts and scales of about the size of the pixels
            return 1 + values if path[-1].key == 'scale' else values

        shapes = jax.eval_shape(model.init_params, jax.random.key(0))
        return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))

    return make


@pytest.fixture(scope='session')
def one_device():
    """A mesh of one of the devices."""
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)


pytest_plugins = ['runs']


@pytest.fixture(scope='session', params=FLOWS, ids=str)
def flow(request, random_params):
    """A model and random parameters, one pair of every kind."""
    model = FLOWS[request.param]
    return model, random_params(model)


@pytest.fixture(scope='session')
def forward_blocks():
    """`forward_blocks` of a model, compiled once for all tests: latents and log_dets by block."""

    @functools.partial(jax.jit, static_argnums=0)
    def forward_blocks(model, params, images, labels):
        return model.apply({'params': params}, images, labels, method='forward_blocks')

    return forward_blocks


@pytest.fixture(scope='session')
def random_batch():
    """Makes images, and labels among which there is a -1."""

    def make(model, batch=4, seed=0):
        draws = np.random.default_rng(seed)
        images = draws.uniform(-1, 1, (batch, *model.image_shape)).astype(np.float32)
        labels = np.arange(batch, dtype=np.int32) % max(model.num_classes, 1)
        labels[-1] = -1
        return images, labels

    return make
