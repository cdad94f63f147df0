"""What the program does: one call for each mode."""

import contextlib
import functools
import time
from pathlib import Path
from typing import Any

from tarflow_jax import exchange, keys, loading
from tarflow_jax.build import Experiment, build
from tarflow_jax.command_line import (
    ALLOW_CHANGES,
    CHECKPOINT,
    CONFIG,
    COORDINATOR_TIMEOUT,
    MODE,
    QUICK,
    SEARCH_BATCH,
    TOPOLOGY,
    WORKDIR,
    config_flags_given,
    config_notice,
    flags_of_model,
    override_flags_given,
    overrides,
    process_flags,
)
from tarflow_jax.commands import command, next_commands
from tarflow_jax.compile_cache import keep_compiled_programs, share_compiled_programs
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation.evaluate import check as check_evaluation
from tarflow_jax.evaluation.evaluate import evaluate
from tarflow_jax.evaluation.metrics import families, metric_names
from tarflow_jax.evaluation.prepare_fid import prepare_fid
from tarflow_jax.parallel import cluster, distributed
from tarflow_jax.parallel.cores import use_cores
from tarflow_jax.parallel.host_memory import keep_freed_memory
from tarflow_jax.parallel.libtpu import quiet_without_tpu
from tarflow_jax.planning import plan as planning
from tarflow_jax.quantities import format_duration
from tarflow_jax.sampling import calibration_file
from tarflow_jax.sampling.guidance import GUIDANCE_KEYS, Guidance
from tarflow_jax.sampling.labels import label_cycle
from tarflow_jax.sampling.write import name_of, write_samples
from tarflow_jax.stopping import RESTARTS, Stop
from tarflow_jax.training import loop
from tarflow_jax.training.checkpoint import newest_and_best, quiet_orbax
from tarflow_jax.training.program import rows_to_share_in_training
from tarflow_jax.workdir import (
    CONFIG_FILE,
    check_no_checkpoint,
    checkpoint_or_workdir,
    existing_path,
    is_checkpoint_path,
    local_folder,
    workdir_of,
)


def run() -> int:
    """Does what the flags ask for; returns the exit status."""
    keep_freed_memory()
    keep_compiled_programs()
    quiet_orbax()
    config, checkpoint = CONFIG.value, CHECKPOINT.value
    workdir = local_folder(WORKDIR.value) if WORKDIR.value else Path()
    if WORKDIR.value:
        check_no_checkpoint(workdir)
    if checkpoint:
        checkpoint = str(existing_path(checkpoint))
    with quiet_without_tpu(), Stop() as stop:
        with stop.immediate():
            if MODE.value == 'convert':
                return convert(config, workdir, checkpoint)
            if MODE.value == 'plan':
                return plan(config, workdir)
            keys.check(config)
            if MODE.value == 'report':
                from tarflow_jax.report.write import report  # the only mode that needs Matplotlib

                distributed.print_on_main(config_notice())
                report(config, workdir, checkpoint, flags_of_model(workdir, checkpoint))
                return 0
            cluster.connect(*process_flags(), COORDINATOR_TIMEOUT.value)
            if not cluster.is_one_of_several():
                use_cores(config.mesh, rows_to_share(config))
            elif WORKDIR.value:
                share_compiled_programs(workdir)
        experiment = build(config)
        distributed.print_on_main(config_notice())
        if MODE.value == 'train':
            return train(experiment, workdir, checkpoint, stop)
        if MODE.value == 'prepare_fid':
            prepare_references(experiment, workdir if WORKDIR.value else None, stop)
        if MODE.value == 'evaluate':
            score(experiment, workdir, checkpoint, stop)
        if MODE.value == 'sample':
            sample(experiment, workdir, checkpoint, stop)
        if MODE.value == 'calibrate':
            calibrate(experiment, workdir, checkpoint, stop)
        return 0


def plan(config, workdir: Path) -> int:
    """Plans for hardware that need not be present, into `workdir/plan.json`."""
    distributed.print_on_main(config_notice())
    options = dict(search_batch=SEARCH_BATCH.value, quick=QUICK.value)
    planning.plan(config, workdir, TOPOLOGY.value, **options)
    train = command(*config_flags_given(), f'--workdir={workdir}', *override_flags_given())
    print(next_commands(train))
    return 0


def rows_to_share(config) -> int:
    """How many images the cores of a CPU share at a time."""
    if MODE.value == 'train':
        return rows_to_share_in_training(config)
    if MODE.value not in ('sample', 'calibrate'):
        return config.evaluate.batch_size
    return min(config.sample.batch_size, config.sample.num_samples)


def train(experiment: Experiment, workdir: Path, checkpoint: str | None, stop: Stop) -> int:
    """Trains in `workdir`, a new run from the parameters of a checkpoint if one is given."""
    check_evaluation(experiment)
    load_params = None
    if checkpoint:

        def load_params():
            return loading.load_params(experiment, checkpoint)[0]

    status = loop.train(
        *(experiment, workdir, stop), load_params=load_params, allow_changes=ALLOW_CHANGES.value
    )
    if not status:
        distributed.print_on_main(next_commands(*next_train_commands(workdir)))
    return status


def next_train_commands(workdir: Path) -> list[str]:
    """Suggests commands to follow training; one samples from the best checkpoint if it is older."""
    newest, best = newest_and_best(workdir)
    commands = [
        command(f'--workdir={workdir}', f'--mode={mode}') for mode in ('sample', 'evaluate')
    ]
    if best not in (None, newest):
        checkpoint = f'--checkpoint={workdir}/checkpoints/{best}'
        commands.append(command(f'--workdir={workdir}', checkpoint, '--mode=sample'))
    return commands


def sample(experiment: Experiment, workdir: Path, checkpoint: str | None, stop: Stop) -> None:
    """Draws samples into `workdir/samples/`."""
    start = time.perf_counter()
    check_guidance(experiment)
    source = checkpoint_or_workdir(workdir, checkpoint)
    params, _ = loading.load_params(experiment, source)
    loading.warn_of_noise_mismatch(experiment.config, source)
    folder = workdir / 'samples'
    model, mesh, sampling = experiment.model, experiment.mesh, experiment.sampling
    folders = [workdir, workdir_of(Path(source))]
    calibration = calibration_file.find_or_calibrate(
        *(workdir, folders, model, params, mesh, sampling),
        functools.partial(stop.check, RESTARTS),
    )
    settings = {**sampling, 'calibration': calibration}
    name = override_suffix(source)
    write_samples(
        *(model, params, mesh, folder, stop, settings, name), class_names=experiment.class_names
    )
    seconds = format_duration(time.perf_counter() - start)
    kept = f'; kept as samples_{name}.*, too' if name else ''
    distributed.print_on_main(
        f'{sampling["num_samples"]} samples in {seconds}: {folder}/samples.npz, samples.png{kept}'
    )
    distributed.print_on_main(next_commands(*next_sample_commands(experiment, workdir, checkpoint)))


def check_guidance(experiment: Experiment, **changes: float) -> None:
    """Raises InputError if guidance would change nothing in samples of these labels."""
    num_classes, sampling = experiment.model.num_classes, experiment.sampling
    settings = {key: sampling[key] for key in GUIDANCE_KEYS} | changes
    labels = label_cycle(sampling['labels'], num_classes) or [0]  # of 'uniform' ones
    Guidance.checked(num_classes, **settings).check_labels(labels, num_classes)


def override_suffix(source: str | Path) -> str:
    """Names samples of a given checkpoint step or of overridden settings; '' for neither."""
    changes = {key.removeprefix('sample.'): value for key, value in overrides().items()}
    name = name_of({key: value for key, value in changes.items() if '.' not in key})
    step = f'step{Path(source).name}' if is_checkpoint_path(Path(source)) else ''
    return '_'.join(filter(None, [step, name]))


def next_sample_commands(
    experiment: Experiment, workdir: Path, checkpoint: str | None
) -> list[str]:
    """Suggests commands to follow sampling: guided samples, if these are not, and an evaluation."""
    of_model, commands = flags_of_model(workdir, checkpoint), []
    if not experiment.sampling['guidance']:
        with contextlib.suppress(InputError):  # it would change nothing
            check_guidance(experiment, guidance=1.0)
            commands.append(command(*of_model, '--mode=sample', '--config.sample.guidance=1'))
    with contextlib.suppress(InputError):  # of data that are not here, or have other splits
        check_evaluation(experiment)
        commands.append(command(*of_model, '--mode=evaluate'))
    return commands or [command(*of_model, '--mode=report')]


def prepare_references(experiment: Experiment, workdir: Path | None, stop: Stop) -> None:
    """Computes the reference statistics for FID; a trained workdir can then be evaluated."""
    prepare_fid(experiment, stop)
    if not (workdir and (workdir / CONFIG_FILE).is_file()):
        return
    has_metric = families(metric_names(experiment.config))
    metrics = [] if has_metric else ['--config.evaluate.metrics=fid']
    flags = [*flags_of_model(workdir, None), '--mode=evaluate', *override_flags_given(), *metrics]
    distributed.print_on_main(next_commands(command(*flags)))


def score(experiment: Experiment, workdir: Path, checkpoint: str | None, stop: Stop) -> None:
    """Evaluates the model into `workdir/evaluation.json`."""
    of_model = flags_of_model(workdir, checkpoint)
    given = command(*of_model, '--mode=evaluate', *override_flags_given())
    evaluate(experiment, workdir, checkpoint, stop, command=given)
    distributed.print_on_main(next_commands(command(*of_model, '--mode=report')))


def calibrate(experiment: Experiment, workdir: Path, checkpoint: str | None, stop: Stop) -> None:
    """Measures how samples are drawn fastest, and stores the result in the workdir."""
    start = time.perf_counter()
    check_guidance(experiment)
    source = checkpoint_or_workdir(workdir, checkpoint)
    model, mesh, sampling = experiment.model, experiment.mesh, experiment.sampling
    params, _ = loading.load_params(experiment, source)
    check = functools.partial(stop.check, RESTARTS)
    calibration_file.calibrate_and_write(workdir, model, params, mesh, sampling, check)
    seconds = format_duration(time.perf_counter() - start)
    distributed.print_on_main(
        f'Calibrated in {seconds}: --mode=sample and --mode=evaluate of {workdir} use it for '
        f'{calibration_file.batch_size_of(mesh, sampling)} samples at a time.'
    )
    flags = [*flags_of_model(workdir, checkpoint), '--mode=sample', *override_flags_given()]
    distributed.print_on_main(next_commands(command(*flags)))


def convert(config, workdir: Path, checkpoint: str | None) -> int:
    """Converts a published checkpoint to a workdir, or a trained model to a published file.

    A config is needed only where the name of a published checkpoint does not say everything.
    """
    if not checkpoint:
        raise InputError(
            '--mode=convert needs --checkpoint: a published .pth, which is converted into the '
            'workdir, or a workdir, which is written as a .pth into the folder --workdir.'
        )
    if config:
        keys.check(config)
    # The config supplies what the checkpoint does not record.
    settings: dict[str, Any] = {}
    if config and not loading.read_dataset_name(checkpoint):
        settings['dataset'] = config.data.name or None
    if config and loading.read_noise(checkpoint) is None:
        settings['noise'] = config.noise.type, config.noise.std
    if Path(checkpoint).expanduser().is_dir():
        path = exchange.convert_to_published(checkpoint, workdir, **settings)
        print(f'{path}: in the format of the published code, which tarflow_jax.load reads, too')
        return 0
    if config:
        settings |= dict(image_shape=config.model.image_shape, patch_size=config.model.patch_size)
    exchange.convert_to_workdir(checkpoint, workdir, **settings)
    print(f'{workdir}: converted from {checkpoint}.')
    print(next_commands(command(f'--workdir={workdir}', '--mode=sample')))
    return 0
