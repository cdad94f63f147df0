"""The programs of a config, compiled for shapes alone: nothing is computed, no array is made."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp

from tarflow_jax import stopping
from tarflow_jax.build import Experiment
from tarflow_jax.likelihood.noise import Noise
from tarflow_jax.parallel import rules
from tarflow_jax.parallel.mesh import batch_shares
from tarflow_jax.planning import hlo
from tarflow_jax.sampling.generate import draw_batch
from tarflow_jax.training import program
from tarflow_jax.training.program import TrainProgram

_QUICK = {'exec_time_optimization_effort': -1.0}
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
    """What compiling told.

    Attributes:
      fits: whether a device's memory is large enough.
      peak_bytes: of memory a device at once: arguments, results, temporaries, code. None if the
        compiler gave up without a number.
      argument_bytes: of memory a device for what goes in, such as the state.
      trace_seconds: from Python to a module.
      compile_seconds: from that to code for the device.
      module: what was compiled; None if it does not fit.
      message: the compiler's, if it does not fit.
    """

    fits: bool
    peak_bytes: float | None
    argument_bytes: float | None
    trace_seconds: float
    compile_seconds: float
    module: hlo.Module | None = None
    message: str = ''


def make_program(experiment: Experiment) -> TrainProgram:
    """The program that trains an experiment, without its data set."""
    config = experiment.config
    noise = Noise(config.noise.type, config.noise.std, num_levels=256)
    # How many steps there are changes no shape.
    return program.make_program(experiment, noise, config.optimizer.warmup_steps + 1)


def lower_train_step(experiment: Experiment, batch_size: int):
    """The train step, traced; `batch_size` images a step over all devices of the mesh."""
    model, mesh = experiment.model, experiment.mesh
    training = make_program(experiment)
    over_batch = rules.batch_sharding(mesh)
    batch = {
        'image': _array((batch_size, *model.image_shape), jnp.uint8, over_batch),
        'label': _array((batch_size,), jnp.int32, over_batch),
    }
    signals = _array((mesh.size,), jnp.int32, stopping.sharding(mesh))
    with rules.on(mesh):
        return training.step.lower(training.state, batch, signals)


def sample_batch_size(config, mesh) -> int:
    """Samples at a time: those of the config, rounded up to what the devices can share."""
    shares = batch_shares(mesh)
    return -(-min(config.sample.batch_size, config.sample.num_samples) // shares) * shares


def lower_sampler(experiment: Experiment):
    """The program that draws a batch of samples, traced."""
    model, mesh, sampling = experiment.model, experiment.mesh, experiment.sampling
    of_all = ('num_samples', 'batch_size', 'seed', 'labels')
    of_a_batch = {key: value for key, value in sampling.items() if key not in of_all}
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    params = rules.abstract(shapes, rules.shardings(shapes, mesh))
    size = sample_batch_size(experiment.config, mesh)
    numbers = _array((size,), jnp.int32, rules.batch_sharding(mesh))
    with rules.on(mesh):
        return draw_batch.lower(
            *(model, params, sampling['seed'], numbers, numbers, numbers),
            tuple(of_a_batch.items()),
        )


def _array(shape, dtype, sharding):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def compile_program(lower, hbm_bytes: float, *, quick: bool = False) -> Program:
    """Traces and compiles what `lower()` returns.

    Args:
      lower: makes a `jax.stages.Lowered`.
      hbm_bytes: memory of a device.
      quick: whether the compiler is to take the first layout in memory that it finds, which takes a
        tenth of the time; products and messages are the same.

    Returns:
      The program; with fits=False where the compiler runs out of memory, or needs more of it than
      there is.
    """
    start = time.perf_counter()
    lowered = lower()
    traced = time.perf_counter()
    try:
        compiled = lowered.compile(_QUICK if quick else None)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        seconds = time.perf_counter() - traced
        return Program(
            False, needed_bytes(str(error)), None, traced - start, seconds, None, str(error)
        )
    seconds = time.perf_counter() - traced
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    return Program(
        fits=peak <= hbm_bytes,
        peak_bytes=peak,
        argument_bytes=memory.argument_size_in_bytes,
        trace_seconds=traced - start,
        compile_seconds=seconds,
        module=hlo.parse(compiled.as_text()),
    )


def needed_bytes(message: str) -> float | None:
    """Bytes a device that a program would take, from the compiler's out-of-memory error."""
    number = r'([\d.]+)([KMGT]?)'
    used = re.search(rf'Used {number} of {number} hbm', message)
    used = used or re.search(rf'\({number}\) exceeds available HBM', message)
    return float(used[1]) * _UNITS[used[2]] if used else None
