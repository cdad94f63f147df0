"""Plans a training run on hardware that need not be present: memory, time and chip-hours."""

import functools
import math
from pathlib import Path

from tarflow_jax.build import build
from tarflow_jax.errors import RunError
from tarflow_jax.files import make_writable, write_json
from tarflow_jax.flow.tarflow import count_parameters
from tarflow_jax.parallel.memory import bytes_per_device
from tarflow_jax.parallel.mesh import num_batch_shards, padded_batch_size
from tarflow_jax.planning import flops, programs, report
from tarflow_jax.planning.compilation import Program, compile_program
from tarflow_jax.planning.estimate import Estimate, estimate, peak_in_precision
from tarflow_jax.planning.search import largest_batch
from tarflow_jax.planning.topologies import Topology, make_topologies

NUM_SAMPLES = 50_000  # of one FID
QUICK_COMPILE_MARGIN = 0.08  # of memory that a thorough compilation may take beyond a quick one
MAX_IMAGES = 512  # a device, in the search for the largest batch


def plan(config, workdir, names: str, *, search_batch: bool = True, quick: bool = False) -> None:
    """Compiles a config's train step and sampler for hardware, and writes what they would take.

    The workdir gets plan.json, a list with an object for each topology, written after each.

    Args:
      names: topologies separated by commas, see `topologies`.
      search_batch: whether to search for the largest batch that fits, by a few quick compilations.
      quick: whether all compilations are quick. The compiled times are then those of a program
        with more HBM traffic than the program that would run.

    Raises:
      InputError: no such hardware, no compiler for it, or a config that makes no sense on it.
      RunError: it does not fit somewhere; all of the plan is written.
    """
    plans, path, topologies = [], Path(workdir) / 'plan.json', make_topologies(names)
    make_writable(workdir, 'another --workdir')
    for topology in topologies:
        plans.append(plan_topology(config, topology, search_batch, quick))
        write_json(path, plans)
        print(report.table(plans[-1]), flush=True)
    print(path)
    misfits = [report.misfit(entry) for entry in plans if not entry['fits']]
    if misfits:
        raise RunError(' '.join(misfits))


def plan_topology(config, topology: Topology, search_batch: bool, quick: bool) -> dict:
    """One object of plan.json."""
    experiment = build(config, topology.devices)
    model, mesh = experiment.model, experiment.mesh
    shares, batch = num_batch_shards(mesh), config.train.batch_size
    quick = quick and topology.chip.is_tpu

    @functools.cache
    def compile_batch(size: int, quick: bool) -> Program:
        lowered = programs.lower_train_step(experiment, size)
        return compile_program(lowered, topology.chip, quick=quick)

    training = programs.make_program(experiment)
    program = compile_batch(batch, quick)
    step = estimate(program, mesh, topology)
    sampler = _sampler(experiment, topology)
    largest = (
        _largest(config, training.microbatches, compile_batch, program, mesh, topology)
        if search_batch
        else {}
    )
    return {
        'topology': topology.name,
        'devices': mesh.size,
        'chips': topology.num_chips,
        'slices': topology.num_slices,
        'hosts': topology.num_hosts,
        'mesh': dict(mesh.shape),
        'model': {key: getattr(model, key) for key in ('dtype', 'attention', 'remat')},
        'microbatches': training.microbatches,
        'global_batch': batch,
        'batch_per_device': batch / shares,
        'fits': program.fits and sampler['fits'],
        'peak_hbm_bytes_per_device': program.peak_bytes,
        'hbm_bytes_per_device': topology.chip.hbm_bytes,
        **largest,
        'parameters': count_parameters(training.state.params),
        'state_bytes_per_device': bytes_per_device(training.state),
        **_step(config, model, topology, step),
        **_training(config, topology, step),
        'sampler': sampler,
        'is_quick': quick,
        'compile_seconds': program.compile_seconds + sampler['compile_seconds'],
    }


def _largest(
    config, microbatches: int, compile_batch, program: Program, mesh, topology: Topology
) -> dict:
    """The largest batch, by quick compilations, less what thorough ones may take beyond them."""
    is_tpu, shares, batch = topology.chip.is_tpu, num_batch_shards(mesh), config.train.batch_size
    hbm_bytes = topology.chip.hbm_bytes * (1 - (QUICK_COMPILE_MARGIN if is_tpu else 0))
    unit = shares * microbatches
    ceiling = max(MAX_IMAGES * shares // unit, batch // unit) * unit
    fits, too_large = largest_batch(
        lambda size: compile_batch(size, is_tpu), batch, unit, hbm_bytes, ceiling
    )
    fits = max(fits, batch if program.fits else 0)  # perhaps within what was put aside
    return {
        'largest_global_batch': fits,
        'smallest_global_batch_too_large': too_large if too_large > fits else None,
    }


def _step(config, model, topology: Topology, step: Estimate | None) -> dict:
    """The train step's time as a range from ideal to as compiled; None where it does not fit."""
    peak = peak_in_precision(model, topology)
    model_flops = config.train.batch_size * flops.train_flops(model)
    least_seconds = model_flops / len(topology.devices) / peak
    return {
        'flops_per_step': model_flops,
        'peak_flops_per_device': peak,
        'executed_flops_per_device': step and step.flops,
        'compiled_hbm_traffic_bytes_per_device': step and step.hbm_bytes,
        'step_seconds': step and step.compiled_seconds,
        'roofline_step_seconds': step and step.ideal_seconds,
        'mfu': step and least_seconds / step.compiled_seconds,
        'roofline_mfu': step and least_seconds / step.ideal_seconds,
        'step_terms_seconds': step and step.compiled,
        'roofline_terms_seconds': step and step.ideal,
        'bound_by': step and step.bound_by,
        'collectives': step and step.collectives,
    }


def _training(config, topology: Topology, step: Estimate | None) -> dict:
    """The whole training at the speed as compiled, and the most data that it can take."""
    images, batch = config.data.num_images, config.train.batch_size
    steps = math.ceil(config.train.num_epochs * images / batch) or None
    days = steps * step.compiled_seconds / 86_400 if steps and step else None
    return {
        'total_steps': steps,
        'days': days,
        'chip_hours': days and days * 24 * topology.num_chips,
        'images_per_second_per_host': step and batch / step.ideal_seconds / topology.num_hosts,
    }


def _sampler(experiment, topology: Topology) -> dict:
    """The sampler and the score step after it."""
    settings, mesh = experiment.config.sample, experiment.mesh
    size = padded_batch_size(settings.batch_size, settings.num_samples, mesh)
    lowered = programs.lower_sampler(experiment, size)
    program = compile_program(lowered, topology.chip, quick=True)
    batch = estimate(program, mesh, topology)
    return {
        'batch_size': size,
        'fits': program.fits,
        'peak_hbm_bytes_per_device': program.peak_bytes,
        'batch_seconds': batch and batch.compiled_seconds,
        'seconds_of_50000': batch and math.ceil(NUM_SAMPLES / size) * batch.compiled_seconds,
        'bound_by': batch and batch.bound_by,
        'compile_seconds': program.compile_seconds,
    }
