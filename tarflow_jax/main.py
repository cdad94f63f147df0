"""The command line.

    python -m tarflow_jax.main --config=FILE --workdir=DIR [--mode=MODE]
        [--checkpoint=PATH] [--topology=NAME,...] [--config.section.key=value ...]

--mode=calibrate measures how samples are drawn fastest, see `sampling.calibrate`; --mode=sample and
--mode=evaluate of the same workdir then use it.

A training resumes from the newest checkpoint of its workdir; if the config now says another data
set, noise, seed or batch, only with --allow_changes (`workdir.MEANING` has all of these keys).

On several hosts the same command runs on each, with the workdir on a disk that all of them share:
srun, mpirun and Kubernetes' TPU pods are noticed (`parallel/cluster.LAUNCHERS`), on TPU VMs add
--distributed=on, and elsewhere give every process its place:

    --coordinator=HOST:PORT --num_processes=N --process_id=I [--coordinator_timeout=SECONDS]

Exit status: 0 done; 1 the run failed; 2 the command is invalid and nothing was done; 128 + n it was
stopped by signal n (143 for SIGTERM, 130 for Ctrl-C, 129 for a closed terminal) within 30 seconds.
A training run has saved itself, an evaluation the samples it has drawn: the same command resumes,
on as many hosts as there are then. A signal to any one process stops all of them after the same
step, with the same status; where one fails, the others end with its status and words. Output that
nobody reads any more, or that was closed from the start, stops nothing. A process that was killed
outright takes the others with it, at once and without a save: they end with status 1 and say which
one it was. A slow one is waited for.
"""

import gc
import os
import re
import sys

from tarflow_jax import terminal

if __name__ == '__main__':
    terminal.prepare()  # before the imports, which take seconds

import time
import traceback
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from tarflow_jax import configfile, exchange, keys, loading
from tarflow_jax.build import Experiment, build
from tarflow_jax.compile_cache import keep_compiled_programs
from tarflow_jax.configfile import ConfigFile
from tarflow_jax.errors import InputError, RunError
from tarflow_jax.evaluation.evaluate import check as check_evaluation
from tarflow_jax.evaluation.evaluate import evaluate
from tarflow_jax.evaluation.prepare_fid import prepare_fid
from tarflow_jax.files import make_writable
from tarflow_jax.parallel import cluster, distributed
from tarflow_jax.parallel.cores import use_cores
from tarflow_jax.parallel.host_memory import keep_freed_memory
from tarflow_jax.parallel.libtpu import quiet_without_tpu
from tarflow_jax.planning import plan as planning
from tarflow_jax.quantities import format_duration
from tarflow_jax.sampling import calibration_file
from tarflow_jax.sampling.write import write_samples
from tarflow_jax.stopping import Stop, Stopped
from tarflow_jax.training import loop
from tarflow_jax.training.checkpoint import quiet_orbax
from tarflow_jax.training.program import rows_to_share_in_training
from tarflow_jax.workdir import existing_path, local_folder, read_config, source_of, workdir_of

MODES = ('train', 'sample', 'calibrate', 'evaluate', 'prepare_fid', 'convert', 'plan', 'report')

CONFIG = config_flags.DEFINE_config_file('config', help_string='a file such as configs/digits.py')
flags.FLAGS['config'].parser = ConfigFile()
WORKDIR = flags.DEFINE_string('workdir', None, 'the folder of the run')
MODE = flags.DEFINE_enum('mode', 'train', MODES, 'what to do')
CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'a workdir, one of its checkpoints/<step>, or a published .pth'
)
TOPOLOGY = flags.DEFINE_string(
    'topology', 'cpu', 'hardware to plan for: v5e:8x8, v5p:4x4x4, 2xv5e:8x8; several with commas'
)
SEARCH_BATCH = flags.DEFINE_bool(
    'search_batch', True, 'whether a plan finds the largest batch that fits, in a few compilations'
)
QUICK = flags.DEFINE_bool(
    'quick', False, 'whether a plan compiles with little care: minutes become seconds'
)
ALLOW_CHANGES = flags.DEFINE_bool(
    'allow_changes', False, 'whether a training may resume with another data set, noise or seed'
)
DISTRIBUTED = flags.DEFINE_enum(
    'distributed', 'auto', cluster.MODES, 'whether this is one process of several'
)
COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT where process 0 listens')
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'how many there are')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'which one this is, from 0')
COORDINATOR_TIMEOUT = flags.DEFINE_integer(
    'coordinator_timeout', 300, 'seconds to wait for the other processes'
)

_PLACE_FLAG = re.compile('--?(distributed|coordinator|num_processes|process_id|mode)=')
LONGEST_MESSAGE = 500  # of absl, which repeats whole values

# Flags that only some modes read.
OF_MODES = {
    'allow_changes': ('train',),
    'topology': ('plan',),
    'search_batch': ('plan',),
    'quick': ('plan',),
}


def main(_) -> int:
    """Does what the flags ask for; returns the exit status."""
    config, checkpoint = CONFIG.value, CHECKPOINT.value
    workdir = local_folder(WORKDIR.value) if WORKDIR.value else Path()
    if checkpoint:
        existing_path(checkpoint)
    with Stop() as stop:
        with stop.at_once():
            if MODE.value == 'convert':
                return convert(config, workdir, checkpoint)
            if MODE.value == 'plan':
                options = dict(search_batch=SEARCH_BATCH.value, quick=QUICK.value)
                return planning.plan(config, workdir, TOPOLOGY.value, **options)
            if MODE.value == 'report':
                return report(config, workdir, checkpoint)
            keys.check(config)
            cluster.connect(*place_flags(), COORDINATOR_TIMEOUT.value)
            if not cluster.is_one_of_several():
                use_cores(config.mesh, rows_to_share(config))
        experiment = build(config)
        if MODE.value == 'train':
            return train(experiment, workdir, checkpoint, stop)
        if MODE.value == 'prepare_fid':
            prepare_fid(experiment, stop)
        if MODE.value == 'evaluate':
            evaluate(experiment, workdir, checkpoint, stop)
        if MODE.value == 'sample':
            sample(experiment, workdir, checkpoint, stop)
        if MODE.value == 'calibrate':
            calibrate(experiment, workdir, checkpoint, stop)
        return 0


def rows_to_share(config) -> int:
    """How many images the cores of a CPU share at a time."""
    if MODE.value == 'train':
        return rows_to_share_in_training(config)
    if MODE.value not in ('sample', 'calibrate'):
        return config.evaluate.batch_size
    return min(config.sample.batch_size, config.sample.num_samples)


def place_flags():
    """What the flags say of this process among others, for `distributed`."""
    return DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value


def train(experiment: Experiment, workdir: Path, checkpoint: str | None, stop: Stop) -> int:
    """Trains in `workdir`, a new run from the parameters of a checkpoint if one is given."""
    check_evaluation(experiment)
    load_params = None
    if checkpoint:

        def load_params():
            return loading.load_params(experiment, checkpoint)[0]

    return loop.train(
        *(experiment, workdir, stop), load_params=load_params, allow_changes=ALLOW_CHANGES.value
    )


def sample(experiment: Experiment, workdir: Path, checkpoint: str | None, stop: Stop) -> None:
    """Draws samples into `workdir/samples/`."""
    start = time.perf_counter()
    source = source_of(workdir, checkpoint)
    params, _ = loading.load_params(experiment, source)
    loading.warn_of_other_noise(experiment.config, source)
    folder = workdir / 'samples'
    model, mesh, sampling = experiment.model, experiment.mesh, experiment.sampling
    folders = [workdir, workdir_of(Path(source))]
    calibration = calibration_file.stored(folders, model, params, mesh, sampling)
    settings = {**sampling, 'calibration': calibration}
    write_samples(model, params, mesh, folder, stop, settings)
    if distributed.is_main():
        seconds = format_duration(time.perf_counter() - start)
        print(f'{sampling["num_samples"]} samples in {seconds}: {folder}/samples.npz, samples.png')


def calibrate(experiment: Experiment, workdir: Path, checkpoint: str | None, stop: Stop) -> None:
    """Measures how samples are drawn fastest, and keeps that in the workdir."""
    start = time.perf_counter()
    source = source_of(workdir, checkpoint)
    model, mesh, sampling = experiment.model, experiment.mesh, experiment.sampling
    params, _ = loading.load_params(experiment, source)
    if distributed.is_main():
        make_writable(workdir)
    calibration_file.calibrate_and_write(workdir, model, params, mesh, sampling, stop.check)
    if distributed.is_main():
        seconds = format_duration(time.perf_counter() - start)
        print(f'Calibrated in {seconds}: --mode=sample and --mode=evaluate of {workdir} use it.')


def report(config, workdir: Path, checkpoint: str | None) -> int:
    """Writes the page of a workdir, by its own config unless one is given."""
    from tarflow_jax.report.write import report  # needs Matplotlib

    report(config or read_config(workdir), workdir, checkpoint)
    return 0


def convert(config, workdir: Path, checkpoint: str | None) -> int:
    """A published checkpoint into a workdir of ours, or a model of ours into a published file.

    A config is needed only where the name of a published checkpoint does not say everything.
    """
    if not checkpoint:
        raise InputError(
            '--mode=convert needs --checkpoint: a published .pth, which becomes the workdir, or a '
            'workdir of ours, which is written as a .pth into the folder --workdir.'
        )
    if config:
        keys.check(config)
    # What the checkpoint does not say, a config does.
    settings: dict[str, Any] = {}
    if config and not loading.dataset_of(checkpoint):
        settings['dataset'] = config.data.name or None
    if config and loading.noise_of(checkpoint) is None:
        settings['noise'] = config.noise.type, config.noise.std
    if Path(checkpoint).expanduser().is_dir():
        path = exchange.to_published(checkpoint, workdir, **settings)
        print(f'{path}: as the published code reads it')
        return 0
    if config:
        settings |= dict(image_shape=config.model.image_shape, patch_size=config.model.patch_size)
    exchange.to_workdir(checkpoint, workdir, **settings)
    print(
        f'{workdir}: converted from {checkpoint}. Sample it with a config of this model: '
        f'python -m tarflow_jax.main --config=FILE --workdir={workdir} --mode=sample'
    )
    return 0


def parse_flags(argv):
    """absl's parsing; a mistake in a flag, a key or a config file becomes an InputError."""
    if sum(argument.partition('=')[0] in ('-config', '--config') for argument in argv) > 1:
        raise InputError('--config is given twice: which of the files is meant?')
    try:
        # Who the others are comes first, so that they hear of mistakes in the rest.
        flags.FLAGS([argv[0], *filter(_PLACE_FLAG.match, argv)])
        remaining = flags.FLAGS(argv)
    except Exception as error:  # of absl, of ml_collections, or of the config file
        raise InputError(_explain(error)) from error
    if len(remaining) > 1:
        raise InputError(
            f'{remaining[1]!r} is not a flag; a setting is --config.section.key=value.'
        )
    unneeded = {'convert': CONFIG, 'report': CONFIG, 'prepare_fid': WORKDIR}.get(MODE.value)
    needed = [flag for flag in (CONFIG, WORKDIR) if flag is not unneeded]
    missing = [f'--{flag.name}' for flag in needed if not flag.value]
    if missing:
        raise InputError(
            f'{" and ".join(missing)} must be given, for example: python -m tarflow_jax.main '
            '--config=configs/digits.py --workdir=runs/digits'
        )
    for name, modes in OF_MODES.items():
        flag = flags.FLAGS[name]
        if flag.value != flag.default and MODE.value not in modes:
            raise InputError(
                f'--{name} means nothing with --mode={MODE.value}; it is for '
                f'--mode={" and --mode=".join(modes)}.'
            )
    return remaining


def _explain(error: Exception) -> str:
    """A mistake in the flags or in the config file, in a sentence or two."""
    cause: BaseException | None = error
    while cause is not None:  # absl wraps what the parser of --config says
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    text = str(error).strip()
    if words := configfile.explain_key(text):
        return words
    if len(text) > LONGEST_MESSAGE:
        text = f'{text[:LONGEST_MESSAGE]}...'
    where = ' Every key stands in configs/base.py with its type.' if 'config' in text else ''
    return configfile.sentence(text) + where


def run():
    """Runs `main`; an error that its user can correct is printed without a traceback."""
    gc.freeze()
    gc.set_threshold(50_000)  # tracing makes objects that live: the default takes 1/8 of a start
    keep_freed_memory()
    keep_compiled_programs()
    quiet_without_tpu()
    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    quiet_orbax()
    stack = ''
    try:
        app.run(main, flags_parser=parse_flags)
    except InputError as error:
        status, message = 2, error
    except RunError as error:
        status, message = 1, error
    except OSError as error:  # of a full disk, while samples or scores are written
        status, message = 1, f'{error}. Fix the cause and run the same command.'
    except Stopped as stopped:
        status, message = stopped.status, stopped
    except KeyboardInterrupt:
        status, message = 130, 'interrupted. The same command starts again.'
    except Exception as error:
        stack = traceback.format_exc()
        status, message = 1, f'{type(error).__name__}: {error}'
    cluster.claim_end(status)
    print(f'{stack}error: {message}', file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    cluster.leave(status, message)
    if flags.FLAGS.is_parsed() and MODE.value not in ('convert', 'plan', 'report'):
        cluster.leave_before_connecting(status, message, *place_flags())
    os._exit(status)  # of a save that failed, Orbax leaves threads that wait for one another


if __name__ == '__main__':
    run()
