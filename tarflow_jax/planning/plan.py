"""What a training would be on given hardware: memory, time, chip-hours, without the hardware."""

import dataclasses
import functools
import math
from pathlib import Path

import jax

from tarflow_jax.build import build
from tarflow_jax.errors import RunError
from tarflow_jax.files import write_json
from tarflow_jax.parallel.memory import bytes_a_device
from tarflow_jax.parallel.mesh import batch_shares
from tarflow_jax.planning import flops, programs, report, roofline, topologies, traffic
from tarflow_jax.planning.search import largest_batch

PLAN_FILE = 'plan.json'
SAMPLES = 50_000  # of one FID
THOROUGHNESS = 0.08  # of memory that a thorough compilation may take beyond a quick one
MOST_IMAGES = 512  # a device, in the search for the largest batch


def plan(config, workdir, names: str, *, search_batch: bool = True, quick: bool = False) -> int:
    """Compiles a config's train step and sampler for hardware, and writes what that foretells.

    Args:
      config: see `configs/base.py`.
      workdir: gets plan.json, a list with an object for each topology, written after each.
      names: of topologies, separated by commas, see `topologies`.
      search_batch: whether to search for the largest batch that fits; takes a few quick
        compilations.
      quick: whether all compilations are quick. What the compiled program moves through HBM, and
        the compiler's own estimate of its time, are then not those of the program that would run.

    Returns:
      The exit status 0.

    Raises:
      InputError: no such hardware, no compiler for it, or a config that makes no sense on it.
      RunError: it does not fit somewhere; all of the plan is written.
    """
    topologies.use_cpu()
    found = [topologies.describe(name) for name in topologies.split(names)]
    plans = []
    for topology in found:
        plans.append(plan_topology(config, topology, search_batch, quick))
        write_json(Path(workdir) / PLAN_FILE, plans)
        print(report.table(plans[-1]), flush=True)
    print(f'{Path(workdir) / PLAN_FILE}')
    misfits = [report.why_not(entry) for entry in plans if not entry['fits']]
    if misfits:
        raise RunError(' '.join(misfits))
    return 0


def plan_topology(config, topology: topologies.Topology, search_batch: bool, quick: bool) -> dict:
    """One object of plan.json."""
    experiment = build(config, topology.devices)
    model, mesh = experiment.model, experiment.mesh
    shares, batch = batch_shares(mesh), config.train.batch_size
    unit = shares * config.train.microbatches
    quick = quick and topology.platform == 'tpu'

    def compile_batch(size: int, quick: bool) -> programs.Program:
        return programs.compile_program(
            lambda: programs.lower_train_step(experiment, size),
            topology.chip.hbm_bytes,
            quick=quick,
        )

    first = compile_batch(batch, quick)
    train, seconds = _train(experiment, topology, first)
    sampler = _sampler(experiment, topology)
    largest = {}
    if search_batch:
        largest = _largest(compile_batch, first, quick, batch, unit, shares, topology)
    return {
        'topology': topology.name,
        'devices': mesh.size,
        'chips': topology.num_chips,
        'slices': topology.num_slices,
        'chip': _chip(topology),
        'mesh': dict(mesh.shape),
        'model': {key: getattr(model, key) for key in ('dtype', 'attention', 'remat')},
        'microbatches': config.train.microbatches,
        'global_batch': batch,
        'batch_per_device': batch / shares,
        'fits': first.fits and sampler['fits'],
        **train,
        **largest,
        **_training(config, topology, seconds),
        'sampler': sampler,
        'is_quick': quick,
        'compile_seconds': first.compile_seconds + sampler['compile_seconds'],
    }


def _chip(topology) -> dict:
    chip = topology.chip
    return {
        'name': chip.name,
        'peak_flops_bf16': None if chip.is_measured else chip.peak_flops,
        'peak_flops_float32': chip.peak_flops if chip.is_measured else chip.peak_flops / 6,
        'hbm_bandwidth': chip.hbm_bandwidth,
        'link_bandwidth_one_way': chip.link_bandwidth,
        'dcn_bandwidth': chip.dcn_bandwidth,
        'devices_per_chip': chip.devices_per_chip,
        'source': chip.source,
    }


def _train(experiment, topology, program: programs.Program) -> tuple[dict, float | None]:
    """What a plan says of the train step, and the seconds of one."""
    config, model, mesh = experiment.config, experiment.model, experiment.mesh
    batch = config.train.batch_size
    state = programs.make_program(experiment).state
    state_bytes = bytes_a_device(state)
    step_flops = batch * flops.train_flops(model)
    known = {
        'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
        'state_bytes_per_device': state_bytes,
        'peak_hbm_bytes_per_device': program.peak_bytes,
        'hbm_bytes_per_device': topology.chip.hbm_bytes,
        'message': program.message.partition('\n\n')[0] or None,
        'flops_per_step': step_flops,
        'causal_flops_per_step': batch * flops.train_flops(model, causal=True),
        'trace_seconds': program.trace_seconds,
        'train_step_compile_seconds': program.compile_seconds,
    }
    if not program.module:
        return {**known, **dict.fromkeys(_ESTIMATES)}, None
    least = traffic.of_train_step(model, state, mesh, batch, config.train.microbatches)
    found = roofline.estimate(program.module, mesh, topology, least)
    peak = roofline.peak_in_precision(model, topology)
    per_device = step_flops / mesh.size
    estimates = (
        found.costs.flops,
        least,
        found.costs.hbm_bytes,
        found.terms,
        found.seconds,
        found.seconds_without_overlap,
        found.seconds_as_compiled,
        per_device / peak / found.seconds,
        known['causal_flops_per_step'] / mesh.size / peak / found.seconds,
        per_device / peak / found.seconds_as_compiled,
        per_device / topology.chip.peak_flops / found.seconds,
        peak,
        found.costs.cycles / topology.chip.clock if topology.chip.clock else None,
        found.bound_by,
        roofline.advise(found, config, model, state, mesh),
        found.collectives,
        found.loops_of_unknown_length,
    )
    return {**known, **dict(zip(_ESTIMATES, estimates, strict=True))}, found.seconds


_ESTIMATES = (
    'executed_flops_per_device',
    'least_hbm_traffic_bytes_per_device',
    'compiled_hbm_traffic_bytes_per_device',
    'roofline_terms_seconds',
    'roofline_step_seconds',
    'step_seconds_without_overlap',
    'step_seconds_with_compiled_traffic',
    'roofline_mfu',
    'roofline_mfu_causal',
    'mfu_with_compiled_traffic',
    'roofline_mfu_of_bf16_peak',
    'peak_flops_per_device',
    'compiler_step_seconds',
    'bound_by',
    'advice',
    'collectives',
    'loops_of_unknown_length',
)


def _largest(compile_batch, first, is_quick, batch, unit, shares, topology) -> dict:
    """By quick compilations, with what a thorough one was seen to take beyond them put aside."""
    is_tpu = topology.platform == 'tpu'
    hbm_bytes = topology.chip.hbm_bytes * (1 - (THOROUGHNESS if is_tpu else 0))

    @functools.cache
    def compile_quickly(size: int) -> programs.Program:
        program = first if size == batch and is_quick else compile_batch(size, is_tpu)
        too_large = program.fits and program.peak_bytes > hbm_bytes
        return dataclasses.replace(program, fits=False) if too_large else program

    ceiling = max(MOST_IMAGES * shares // unit, batch // unit) * unit
    fits, fits_not = largest_batch(
        compile_quickly, compile_quickly(batch), batch, unit, hbm_bytes, ceiling
    )
    if first.fits and fits < batch:
        fits = batch  # within what was put aside
    return {
        'largest_batch_per_device': fits / shares,
        'largest_global_batch': fits,
        'smallest_global_batch_too_large': fits_not if fits_not > fits else None,
    }


def _training(config, topology, step_seconds: float | None) -> dict:
    """Of the whole training, and its data's pace, at the roofline's speed; without the data."""
    images = config.data.num_images
    steps = math.ceil(config.train.num_epochs * images / config.train.batch_size) or None
    hosts = len({device.process_index for device in topology.devices})
    days = steps * step_seconds / 86_400 if steps and step_seconds else None
    return {
        'total_steps': steps,
        'days': days,
        'chip_hours': days and days * 24 * topology.num_chips,
        'hosts': hosts,
        'images_per_second_per_host': step_seconds
        and config.train.batch_size / step_seconds / hosts,
    }


def _sampler(experiment, topology) -> dict:
    """What a plan says of the sampler and the score step after it."""
    config, model, mesh = experiment.config, experiment.model, experiment.mesh
    size = programs.sample_batch_size(config, mesh)
    program = programs.compile_program(
        lambda: programs.lower_sampler(experiment),
        topology.chip.hbm_bytes,
        quick=topology.platform == 'tpu',
    )
    least = traffic.of_sampler(model, mesh, size, guided=config.sample.guidance > 0)
    if config.sample.denoise:
        least += traffic.of_gradient(model, mesh, size)
    found = None
    if program.module:
        found = roofline.estimate(program.module, mesh, topology, least)
    return {
        'batch_size': size,
        'guidance': config.sample.guidance,
        'fits': program.fits,
        'peak_hbm_bytes_per_device': program.peak_bytes,
        'message': program.message or None,
        'roofline_batch_seconds': found and found.seconds,
        'roofline_seconds_of_50000': found and math.ceil(SAMPLES / size) * found.seconds,
        'bound_by': found and found.bound_by,
        'roofline_terms_seconds': found and found.terms,
        'compile_seconds': program.compile_seconds,
    }
