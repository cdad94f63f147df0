"""Defines and parses the command-line flags, and explains mistakes in a sentence or two."""

import re
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from tarflow_jax import configfile, usage
from tarflow_jax.commands import command
from tarflow_jax.configfile import ConfigFile
from tarflow_jax.errors import InputError
from tarflow_jax.values import Boolean, Integer

CONFIG_FILE = 'config.json'  # of a workdir
CONFIG = config_flags.DEFINE_config_file('config', help_string='an experiment: digits, or its file')
flags.FLAGS['config'].parser = ConfigFile()
WORKDIR = flags.DEFINE_string('workdir', None, 'the folder of the run')
MODE = flags.DEFINE_enum('mode', 'train', list(usage.MODES), 'what to do')
CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'a workdir, one of its checkpoints/<step>, or a published .pth'
)
TOPOLOGY = flags.DEFINE_string(
    'topology',
    'cpu',
    'hardware to plan for: h100, v5e:8x8, 2xv5p:4x4x4; several with commas',
)
SEARCH_BATCH = flags.DEFINE_bool(
    'search_batch', True, 'whether a plan finds the largest batch that fits, in a few compilations'
)
QUICK = flags.DEFINE_bool(
    'quick', False, 'whether a plan compiles with fewer optimisations: minutes become seconds'
)
ALLOW_CHANGES = flags.DEFINE_bool(
    'allow_changes', False, 'whether a run may resume with another data set, noise or seed'
)
DISTRIBUTED = flags.DEFINE_enum(
    'distributed', 'auto', ('auto', 'on', 'off'), 'whether this is one process of several'
)
COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT where process 0 listens')
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'number of processes')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'number of this process, from 0')
COORDINATOR_TIMEOUT = flags.DEFINE_integer(
    'coordinator_timeout', 300, 'seconds to wait for the other processes'
)

_CONFIG_FLAG = re.compile('--?config(=|$)')
_OVERRIDE = re.compile(r'--?(no)?config\.')
_PROCESS_FLAG = re.compile('--?(distributed|coordinator|num_processes|process_id|mode)=')
_SETTING = 'a setting is --config.section.key=value'
_MAX_MESSAGE_LENGTH = 500  # of absl, which repeats whole values

# Flags that only some modes read.
_MODES_BY_FLAG = {
    'allow_changes': ('train',),
    'topology': ('plan',),
    'search_batch': ('plan',),
    'quick': ('plan',),
}
_MODES_WITHOUT_CONFIG = ('convert',)
_MODES_WITHOUT_WORKDIR = ('prepare_fid', 'info')
# Modes for what --checkpoint names.
_MODES_WITH_MODEL = ('sample', 'evaluate', 'calibrate', 'report', 'info')


def parse(argv: list[str]) -> None:
    """Parses the flags; the config of a workdir stands in for a `--config` that is not given.

    Raises:
      InputError: a mistake in a flag, a key or a config file.
    """
    if sum(bool(_CONFIG_FLAG.match(argument)) for argument in argv) > 1:
        raise InputError('--config is given twice; give it once.')
    try:
        # The multi-process flags are parsed first, so that a mistake in any other flag can be
        # reported to the other processes.
        flags.FLAGS([argv[0], *filter(_PROCESS_FLAG.match, argv)])
        argv = _with_config(argv)
        sys.argv[:] = argv  # where the config's flag looks for those of its keys
        remaining = flags.FLAGS(argv)
    except Exception as error:  # of absl, of ml_collections, or of the config file
        raise InputError(_explain(error)) from error
    if len(remaining) > 1:
        word = remaining[1]
        hint = f'a mode is --mode={word}' if word in usage.MODES else _SETTING
        raise InputError(f'{word!r} is not a flag; {hint}.')
    _check_given(bool(CONFIG.value))
    for name, modes in _MODES_BY_FLAG.items():
        flag = flags.FLAGS[name]
        if flag.value != flag.default and MODE.value not in modes:
            raise InputError(
                f'--{name} has no effect with --mode={MODE.value}; it applies to '
                f'--mode={" and --mode=".join(modes)}.'
            )


def process_flags():
    """Returns the multi-process flags, as the arguments of `parallel.cluster.connect`."""
    if not process_flags_are_parsed():
        return 'auto', None, None, None
    return DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value


def process_flags_are_parsed() -> bool:
    """Whether at least the multi-process flags have been parsed."""
    return flags.FLAGS.is_parsed()


def flag_help() -> str:
    """Every flag, its default, and what it is for."""
    own = flags.FLAGS.get_flags_for_module(__name__)
    lines = [f'  --{flag.name:20} {flag.help} ({flag.default_as_str})' for flag in own]
    return '\n'.join(line.replace(' (None)', '') for line in lines)


def config_notice() -> str:
    """Says which config was taken from a workdir, and what was changed; '' for an experiment's."""
    path = config_flags.get_config_filename(flags.FLAGS['config']) if CONFIG.value else ''
    if not path.endswith('.json'):
        return ''
    changes = [flag.removeprefix('--config.') for flag in override_flags_given()]
    return f'Config: {path}' + (f', with {", ".join(changes)}' if changes else '')


def config_flags_given() -> list[str]:
    """Returns the --config flag that a follow-up command must repeat; [] for the workdir's own."""
    path = config_flags.get_config_filename(flags.FLAGS['config']) if CONFIG.value else ''
    is_own = WORKDIR.value and Path(path) == Path(WORKDIR.value).expanduser() / CONFIG_FILE
    return [] if not path or is_own else [f'--config={path}']


def overrides() -> dict[str, Any]:
    """The keys that were set on the command line, with their values."""
    if not CONFIG.value:
        return {}
    return config_flags.get_override_values(flags.FLAGS['config'])


def override_flags_given() -> list[str]:
    """The flags that set these keys, as typed on a command line."""
    texts = {
        name: ','.join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in overrides().items()
    }
    return [f'--config.{name}={text}' for name, text in texts.items()]


def flags_of_model(workdir: Path, checkpoint: str | None) -> list[str]:
    """The flags that name the workdir, a given checkpoint, and a config if none is known."""
    from tarflow_jax.workdir import workdir_of

    folders = [workdir, *([workdir_of(Path(checkpoint).expanduser())] if checkpoint else [])]
    known = any((folder / CONFIG_FILE).exists() for folder in folders)
    of_checkpoint = [f'--checkpoint={checkpoint}'] if checkpoint else []
    return [*([] if known else config_flags_given()), f'--workdir={workdir}', *of_checkpoint]


def _with_config(argv: list[str]) -> list[str]:
    """Adds --config with the config of the workdir, if the arguments have no --config."""
    if any(map(_CONFIG_FLAG.match, argv)):
        return argv
    words = flags.FLAGS([argument for argument in argv if not _OVERRIDE.match(argument)])[1:]
    if modes := [word for word in words if word in usage.MODES]:
        raise InputError(f'{modes[0]!r} is not a flag; a mode is --mode={modes[0]}.')
    if MODE.value in _MODES_WITHOUT_CONFIG:
        return argv
    workdir = _trained_workdir()
    _check_given(workdir is not None)
    return [argv[0], f'--config={workdir}/{CONFIG_FILE}', *argv[1:]]


def _trained_workdir() -> Path | None:
    """Returns the workdir whose config to use, by --workdir or --checkpoint; None if there is none.

    Raises:
      InputError: the mode needs a trained model, and there is none in the workdir.
    """
    from tarflow_jax.formats import torchfile
    from tarflow_jax.workdir import (
        check_no_checkpoint,
        checkpoint_or_workdir,
        existing_path,
        local_folder,
        read_config,
        workdir_of,
    )

    checkpoint = CHECKPOINT.value if MODE.value in _MODES_WITH_MODEL else None
    workdir = local_folder(WORKDIR.value) if WORKDIR.value else None
    if workdir and (workdir / CONFIG_FILE).is_file():
        return workdir
    if workdir:
        check_no_checkpoint(workdir)
    source = existing_path(checkpoint) if checkpoint else workdir
    if MODE.value not in _MODES_WITH_MODEL or source is None:
        return None
    if checkpoint and not source.is_dir():
        torchfile.read_state_dict(source)  # raises if it is not a checkpoint at all
        raise InputError(
            f'--config is required: {source} does not contain all settings. Alternatively, convert '
            'it to a workdir, which needs no --config: '
            f'{command("--mode=convert", f"--checkpoint={source}")} --workdir=DIR'
        )
    source = workdir_of(Path(checkpoint_or_workdir(source, None)))
    read_config(source)  # says what is missing
    return source


def _check_given(has_config: bool) -> None:
    """Raises InputError unless the flags are given that the mode needs."""
    missing = [] if has_config or MODE.value in _MODES_WITHOUT_CONFIG else ['--config']
    if not WORKDIR.value and MODE.value not in _MODES_WITHOUT_WORKDIR:
        missing.append('--workdir')
    if missing:
        example = command('--config=digits', '--workdir=runs/digits')
        untrained = f' ({WORKDIR.value} has no {CONFIG_FILE})' if WORKDIR.value else ''
        raise InputError(
            f'{" and ".join(missing)} must be given{untrained}, for example: {example}'
        )


def _explain(error: Exception) -> str:
    """A mistake in the flags or in the config file, in a sentence or two."""
    cause: BaseException | None = error
    while cause is not None:  # absl wraps what the parser of --config says
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    text = str(error).strip()
    if words := configfile.explain_key(text) or _explain_value(text):
        return words
    if len(text) > _MAX_MESSAGE_LENGTH:
        text = f'{text[:_MAX_MESSAGE_LENGTH]}...'
    where = f' {configfile.every_key()}' if 'config' in text else ''
    return configfile.with_period(text) + where


def _explain_value(text: str) -> str | None:
    """Explains absl's error of a value of the wrong type; returns None for other errors."""
    from tarflow_jax.keys import KEYS

    match = re.match(r'flag --(?:config\.)?([\w.]+)=(.*?): ', text)
    name, value = match.groups() if match else ('', '')
    of_flag = {'bool': Boolean(), 'int': Integer(0)}
    kinds = {f.name: of_flag.get(f.flag_type()) for f in flags.FLAGS.get_flags_for_module(__name__)}
    kind = (kinds | KEYS).get(name)
    try:
        if kind:
            kind.check(name if name in KEYS else f'--{name}', value)
    except InputError as error:
        return str(error)
    return None
