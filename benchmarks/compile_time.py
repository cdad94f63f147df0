"""How long a config's train step takes to trace and to compile on this machine.

    python -m benchmarks.compile_time --config=configs/afhq256.py

Nothing is computed and no parameter is made: the step is compiled for shapes alone.
"""

import time

import jax
from absl import app
from ml_collections import config_flags

from tarflow_jax.build import build
from tarflow_jax.planning import programs

CONFIG = config_flags.DEFINE_config_file('config')


def main(_):
    """Prints parameters, seconds of tracing and seconds of compiling."""
    config = CONFIG.value
    experiment = build(config)
    model, mesh = experiment.model, experiment.mesh
    start = time.perf_counter()
    lowered = programs.lower_train_step(experiment, config.train.batch_size)
    traced = time.perf_counter()
    lowered.compile()
    compiled = time.perf_counter()
    shapes = model.param_shapes()
    params = sum(x.size for x in jax.tree.leaves(shapes))
    print(
        f'{params:,} parameters, {mesh.size} {jax.devices()[0].platform} device(s): '
        f'traced in {traced - start:.1f} s, compiled in {compiled - traced:.1f} s'
    )


if __name__ == '__main__':
    app.run(main)
