"""The folder of a run: its lock, the config it was made with, and paths of its checkpoints."""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from absl import logging
from ml_collections import ConfigDict

from tarflow_jax.errors import InputError
from tarflow_jax.files import write_json
from tarflow_jax.flow import TarFlow
from tarflow_jax.keys import (
    CLASS_NAMES,
    CONVERTED_FROM,
    KEYS,
    NON_PARAMETER_KEYS,
    check_record,
    flatten,
)
from tarflow_jax.values import PathValue

CONFIG_FILE = 'config.json'
EVALUATION_FILE = 'evaluation.json'
MAX_BYTES = 1_000_000  # of a config.json
_RESTORE = 'Restore it from a copy.'

# Keys outside of the model section whose values a resumed run must keep.
RESUME_KEYS = (
    *('seed', 'data.name', 'data.train_split', 'data.test_split', 'data.random_flip'),
    *('noise.type', 'noise.std', 'optimizer.b1', 'optimizer.b2', 'optimizer.weight_decay'),
    *('train.batch_size', 'train.drop_label', 'train.ema_decay'),
)


@contextlib.contextmanager
def workdir_lock(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds the lock of a workdir for this process, and makes the folder if it is missing.

    The lock is the kernel's, on `workdir/.lock`, and ends with the process however that ends; the
    file stays and means nothing by itself.

    Raises:
      InputError: another run holds the workdir, or it is not a folder that can be written to.
    """
    with _open_lock_file(workdir) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().strip() or 'of unknown number'
            raise InputError(
                f'workdir {os.fspath(workdir)} is in use by process {holder}. One run at a time '
                f'may write there: wait until it ends, stop it, or give another --workdir.'
            ) from None
        try:
            _replace_text(file, f'{os.getpid()} on {socket.gethostname()}\n')
            yield
        finally:
            _replace_text(file, '')
            # Closing would not do while a forked child still has the file open.
            fcntl.flock(file, fcntl.LOCK_UN)


def _open_lock_file(workdir: str | os.PathLike) -> IO[str]:
    local_folder(workdir)
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(Path(workdir, '.lock'), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            f'workdir {os.fspath(workdir)} cannot be written to ({error.strerror}): give a '
            f'--workdir that is a folder, or can become one, in which you may write.'
        ) from error
    return open(descriptor, 'r+')


def local_folder(workdir: str | os.PathLike) -> Path:
    """Returns the path of a workdir, ~ being the home folder; raises InputError for a URL."""
    path = PathValue().check('--workdir', workdir)
    if '://' in os.fspath(workdir):
        raise InputError(
            f'workdir {os.fspath(workdir)} is a URL. A workdir is a folder: give a local '
            f'path, or mount the bucket (gcsfuse, s3fs) and give the path of the mount.'
        )
    return path


def _replace_text(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def read_config(workdir) -> ConfigDict:
    """The config that made a workdir, with `NON_PARAMETER_KEYS` that it lacks at their defaults.

    Raises:
      InputError: the folder has none, or a damaged one.
    """
    path = Path(workdir, CONFIG_FILE)
    if not path.is_file():
        raise InputError(
            f'{workdir} is not a workdir of a training run: it has no {CONFIG_FILE}. Train one '
            'there first, or give the --workdir (or --checkpoint) of another.'
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f'it has more than {MAX_BYTES} bytes')
        record = json.loads(path.read_text(encoding='utf-8'), parse_constant=_refuse_constant)
        check_record(record)
    except RecursionError:
        raise InputError(f'{path} is damaged: it is nested too deeply. {_RESTORE}') from None
    except ValueError as error:
        words = f'{path} is damaged: {str(error).rstrip(".")}.'
        raise InputError(f'{words} {_RESTORE}') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}.') from error
    defaults = {f.name: f.default for f in dataclasses.fields(TarFlow)}
    record['model'] = {key: defaults[key] for key in NON_PARAMETER_KEYS} | record['model']
    sections = {*(name.partition('.')[0] for name in KEYS), CONVERTED_FROM, CLASS_NAMES}
    return ConfigDict({key: value for key, value in record.items() if key in sections})


def read_evaluation(workdir) -> dict[str, Any]:
    """The last evaluation of a workdir; empty if there is none.

    Raises:
      InputError: it is damaged, or may not be read.
    """
    path = Path(workdir, EVALUATION_FILE)
    try:
        evaluation = json.loads(path.read_text(encoding='utf-8'))
        if not isinstance(evaluation, dict):
            raise ValueError('it is not a JSON object')
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}.') from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f'{path} is damaged: {error}. Move it away, and evaluate again.'
        ) from error
    return evaluation


def evaluated(evaluation: Mapping[str, Any]) -> str:
    """What an evaluation is of, in words: the step of a checkpoint or its path, and samples."""
    step, file = evaluation.get('step'), evaluation.get('samples', {}).get('file')
    model = evaluation.get('checkpoint') if step is None else f'step {step}'
    parts = [part for part in (model, file and f'the samples in {file}') if part]
    return ' and '.join(parts) or 'this model'


def _refuse_constant(name: str):
    raise InputError(f'{name} is not a value of JSON')


def config_of(model: TarFlow, noise: tuple[str, float] | None, dataset: str | None) -> ConfigDict:
    """The config of a model that was not trained here: what is known of it, in the same sections.

    Its attention is that of any device.
    """
    names = {field.name for field in dataclasses.fields(model)} - {'parent', 'name'}
    attributes = {name: getattr(model, name) for name in sorted(names)}
    sections: dict[str, Any] = {
        'model': attributes | {'attention': 'auto'},
        'train': {'ema_decay': 0.0},
    }
    if noise is not None:
        sections['noise'] = dict(zip(('type', 'std'), noise, strict=True))
    if dataset is not None:
        sections['data'] = {'name': dataset}
    return ConfigDict(sections)


def converted_from(workdir) -> str:
    """The name of the published file that a workdir was converted from; '' if it was not."""
    is_run = Path(workdir, CONFIG_FILE).is_file()
    config = read_config(workdir) if is_run else {}
    return config[CONVERTED_FROM]['file'] if CONVERTED_FROM in config else ''


def check_same_model(config, workdir) -> None:
    """Raises InputError, naming the keys, unless `workdir` was made with the model of `config`."""
    recorded = read_config(workdir)
    if CONVERTED_FROM in recorded:
        raise InputError(
            f'{workdir} was converted from a published checkpoint, which has no optimizer state to '
            f'resume with. Train in another --workdir with --checkpoint={workdir}.'
        )
    compared = [f'model.{key}' for key in config.model if key not in NON_PARAMETER_KEYS]
    if bool(recorded.train.ema_decay) != bool(config.train.ema_decay):
        compared.append('train.ema_decay')
    compared.append('optimizer.first_moment_dtype')
    if differences := differences_in(config, recorded, compared):
        raise InputError(
            f'{workdir} holds another model: {"; ".join(differences)}. Give another --workdir, or '
            'the config it was made with.'
        )


def check_same_run(config, workdir) -> None:
    """Raises InputError, naming the keys, unless `workdir` was trained by what `config` says.

    A run may change its length, learning rates and clipping, how often it reports and saves, and
    the machine it runs on.
    """
    recorded = read_config(workdir)
    compared = [
        name for name in RESUME_KEYS if name != 'noise.std' or config.noise.type == 'gaussian'
    ]
    if differences := differences_in(config, recorded, compared):
        raise InputError(
            f'{workdir} was trained with other settings: {"; ".join(differences)}. Give another '
            '--workdir, or the settings that it was trained with, or add --allow_changes to resume '
            'from its checkpoint with the new ones.'
        )


def differences_in(config, recorded, names) -> list[str]:
    """What differs among the named keys, as far as the older config has them."""
    before, now = (flatten(c) for c in (recorded, config))
    return [
        f'{name} is {_plain(before[name])} in the workdir, {_plain(now[name])} in the config'
        for name in names
        if name in before and _plain(before[name]) != _plain(now[name])
    ]


def record_config(config, workdir) -> None:
    """Writes the config into the workdir, and says what changed since the last run there."""
    path = Path(workdir, CONFIG_FILE)
    if path.exists():
        before, now = (flatten(c) for c in (read_config(workdir), config))
        for name in sorted(now):
            if name in before and _plain(before[name]) != _plain(now[name]):
                logging.warning('%s was %s, is %s now.', name, before[name], now[name])
    write_json(path, config.to_dict())


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def checkpoint_or_workdir(workdir: Path, checkpoint: str | None) -> str | Path:
    """Returns the checkpoint, or without one the workdir, whose newest checkpoint is meant.

    Raises:
      InputError: no checkpoint is given, and there is no such workdir.
    """
    if not checkpoint and not workdir.is_dir():
        raise InputError(f'workdir {workdir} does not exist: train there first.')
    return checkpoint or workdir


def existing_path(path) -> Path:
    """Returns the path, ~ being the home folder; a checkpoint's as `workdir/checkpoints/<step>`.

    Raises:
      InputError: it is not a path, or nothing is there.
    """
    path = PathValue().check('path', path)
    try:
        exists = path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(f'{path} cannot be read: {error.strerror}.') from error
    if not exists:
        raise InputError(f'{path} does not exist.{_other_steps(path)}')
    real = Path(os.path.realpath(path))  # a checkpoint may be named from its folder, or by a link
    is_of_run = is_checkpoint_path(real) and (workdir_of(real) / CONFIG_FILE).is_file()
    return real if is_of_run and not is_checkpoint_path(path) else path


def _other_steps(path: Path) -> str:
    """Names the checkpoints that there are in the place of one that there is not."""
    if not is_checkpoint_path(path) or not path.parent.is_dir():
        return ''
    steps = sorted(int(other.name) for other in path.parent.iterdir() if is_checkpoint_path(other))
    return f' There are those of the steps {", ".join(map(str, steps))}.' if steps else ''


def is_checkpoint_path(path: Path) -> bool:
    """Whether a path is that of a checkpoint, `workdir/checkpoints/<step>`."""
    return path.name.isdigit() and path.parent.name == 'checkpoints'


def workdir_of(path: Path) -> Path:
    """Returns the workdir of a checkpoint, and a workdir itself."""
    return path.parent.parent if is_checkpoint_path(path) else path


def check_no_checkpoint(workdir: Path) -> None:
    """Raises InputError if a workdir is the folder of a checkpoint, where nothing is safe."""
    place = workdir.absolute()
    run = workdir_of(place)
    if is_checkpoint_path(place) and (run / CONFIG_FILE).is_file():
        raise InputError(
            f'workdir {workdir} is a checkpoint, which a longer training removes with all that is '
            f'in it. Give --workdir={run} --checkpoint={place}.'
        )
