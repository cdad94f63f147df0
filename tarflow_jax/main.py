"""The command: `tarflow`, `python -m tarflow_jax` and `python -m tarflow_jax.main` alike.

    tarflow --config=EXPERIMENT --workdir=DIR [--mode=MODE]
        [--checkpoint=PATH] [--topology=NAME,...] [--config.section.key=value ...]

A workdir that was trained has its own config: there, `tarflow --workdir=DIR --mode=sample` will do.

--mode=calibrate measures how samples are drawn fastest, see `sampling.calibrate`; --mode=sample and
--mode=evaluate of the same workdir then use it.

A training run resumes from the newest checkpoint of its workdir; if the config now specifies
another data set, noise, seed or batch, only with --allow_changes (`workdir.RESUME_KEYS` has all of
these keys).

On several hosts the same command runs on each, with the workdir on a disk that all of them share.
srun, mpirun (of Open MPI 4) and Kubernetes' TPU pods are detected (`parallel/launchers`); add
--distributed=on on TPU VMs; elsewhere, give every process these flags:

    --coordinator=HOST:PORT --num_processes=N --process_id=I [--coordinator_timeout=SECONDS]

Exit status: 0 done; 1 the run failed; 2 the command or an input is at fault, and no result was
written; 128 + n it was stopped by signal n (143 for SIGTERM, 130 for Ctrl-C, 129 for a closed
terminal) within 30 seconds. A training run has saved itself, an evaluation the samples it has
drawn: the same command resumes, on as many hosts as there are then. A signal to any one process,
once all have found each other, stops all of them after the same step, with the same status; if one
fails, the others end with its status and message. A closed output stream, such as a broken pipe,
does not stop the program. If a process is killed, the others end immediately with status 1, without
saving, and report which process it was. The program waits for slow processes.
"""

import gc
import os
import sys
from pathlib import Path
from typing import NoReturn

import tarflow_jax
from tarflow_jax import terminal


def main() -> None:
    """Runs the program in a process of its own."""
    terminal.prepare()  # before the imports, which take seconds
    arguments = sys.argv[1:]
    if text := _immediate_output(arguments):
        print(text)
        sys.exit(0 if arguments else 2)
    run()


def _immediate_output(arguments: list[str]) -> str:
    """Returns the output of --help, of --version or without arguments; '' for other arguments."""
    flags = {argument.lstrip('-') for argument in arguments if argument.startswith('-')}
    if 'version' in flags:
        return f'tarflow_jax {tarflow_jax.__version__}'
    if 'helpfull' in flags:
        from tarflow_jax import command_line

        return f'{__doc__}\nFlags:\n{command_line.flag_help()}'
    if not arguments or flags & {'help', 'h'}:
        from tarflow_jax.usage import help_text

        return help_text()
    return ''


def run() -> None:
    """Does what the flags ask for; an error that its user can correct comes without a traceback."""
    gc.freeze()
    gc.set_threshold(50_000)  # tracing makes long-lived objects: the default costs 1/8 of a start
    terminal.plain_warnings()
    try:
        status = _run()
    except BaseException as error:
        _exit_with_error(error)
    gc.freeze()  # or Python would scan all objects at exit, for half a second
    sys.exit(status)


def _run() -> int:
    """Imports, which take seconds, come only after the flags are known to be sound."""
    from tarflow_jax import command_line

    command_line.parse(sys.argv)
    if command_line.MODE.value == 'info':
        return _show_info()
    from tarflow_jax import modes

    return modes.run()


def _show_info() -> int:
    from tarflow_jax import command_line, info
    from tarflow_jax.commands import command, next_commands
    from tarflow_jax.workdir import check_no_checkpoint, existing_path, local_folder, workdir_of

    checkpoint, folder = command_line.CHECKPOINT.value, command_line.WORKDIR.value
    of_checkpoint = workdir_of(existing_path(checkpoint)) if checkpoint else None
    source = local_folder(folder) if folder else of_checkpoint
    if source:
        check_no_checkpoint(source)
    workdir = source if source and source.is_dir() else None
    if words := command_line.config_notice():
        print(words)
    info.show(command_line.CONFIG.value, workdir)
    place = folder or workdir or 'runs/NAME'
    if checkpoint or (workdir and info.has_model(workdir)):
        flags = command_line.flags_of_model(Path(place), checkpoint)
        follow = [command(*flags, f'--mode={mode}') for mode in ('sample', 'report')]
    else:
        changes = command_line.override_flags_given()
        follow = [command(*command_line.config_flags_given(), f'--workdir={place}', *changes)]
    print(next_commands(*follow))
    return 0


def _exit_with_error(error: BaseException) -> NoReturn:
    """Ends this process, and all others of its run, with the status and the words of an error."""
    status, message, stack = terminal.explain(error)
    if _is_alone():
        _print_error(stack, message)
    else:
        from tarflow_jax import command_line
        from tarflow_jax.parallel import cluster

        cluster.claim_failure_report(status)
        _print_error(stack, message)
        cluster.abort_all(status, message)
        of_one_process = ('convert', 'plan', 'report')
        if (
            command_line.process_flags_are_parsed()
            and command_line.MODE.value not in of_one_process
        ):
            cluster.abort_before_connecting(status, message, *command_line.process_flags())
    os._exit(status)  # after a failed save, threads of Orbax wait for one another


def _print_error(stack: str, message: object) -> None:
    print(f'{stack}error: {message}', file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()


def _is_alone() -> bool:
    """Whether no other process can wait for this one."""
    from tarflow_jax import command_line
    from tarflow_jax.parallel.launchers import launched

    mode, *given = command_line.process_flags()
    return mode != 'on' and not launched() and not any(value is not None for value in given)


if __name__ == '__main__':
    main()
