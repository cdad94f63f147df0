"""How long a config's train step takes to trace and to compile on this machine.

    python -m benchmarks.compile_time --config=configs/afhq256.py

Nothing is computed and no parameter is made: the step is compiled for shapes alone.
"""

import functools
import time

import jax
import jax.numpy as jnp
from absl import app
from ml_collections import config_flags

from tarflow_jax import experiment
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.training import state as states
from tarflow_jax.training.loop import jit_train_step
from tarflow_jax.training.objective import Noise
from tarflow_jax.training.optimizer import learning_rate_schedule, make_optimizer

CONFIG = config_flags.DEFINE_config_file('config')


def main(_):
    """Prints parameters, seconds of tracing and seconds of compiling."""
    config = CONFIG.value
    model = experiment.make_model(config)
    mesh = make_mesh(**config.mesh)
    schedule = learning_rate_schedule(peak=1e-4, floor=1e-6, warmup_steps=1, total_steps=2)
    optimizer = make_optimizer(schedule, b1=0.9, b2=0.95, weight_decay=1e-4, clip_norm=0.0)
    init = functools.partial(
        states.init_state, model=model, optimizer=optimizer, ema=experiment.has_ema(config)
    )
    state = jax.eval_shape(init, jax.random.key(0))
    shardings = rules.shardings(state, mesh)
    size = config.train.batch_size
    batch = {
        'image': jax.ShapeDtypeStruct((size, *model.image_shape), jnp.uint8),
        'label': jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    signals = jax.ShapeDtypeStruct((mesh.size,), jnp.int32)
    noise = Noise(config.noise.type, config.noise.std, num_levels=256)
    train_step = jit_train_step(config, model, optimizer, noise, mesh, shardings)
    start = time.perf_counter()
    lowered = train_step.lower(state, batch, signals)
    traced = time.perf_counter()
    lowered.compile()
    compiled = time.perf_counter()
    params = sum(x.size for x in jax.tree.leaves(state.params))
    print(
        f'{params:,} parameters, {mesh.size} {jax.devices()[0].platform} device(s): '
        f'traced in {traced - start:.1f} s, compiled in {compiled - traced:.1f} s'
    )


if __name__ == '__main__':
    app.run(main)
