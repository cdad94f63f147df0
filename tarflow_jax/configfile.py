"""The flag --config: an experiment's name or file, or a workdir's `config.json`.

An experiment is a Python file with a `get_config()`, whose mistakes are reported by their line.
"""

import difflib
import importlib.util
import inspect
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict

import tarflow_jax
from tarflow_jax.errors import InputError

SHARED = ('base', 'paper')  # files that experiments begin with
_NAME = re.compile(r'\w+')


def folder() -> Path:
    """The folder of the experiments that come with the package: in a clone, `configs/`."""
    package = Path(tarflow_jax.__file__).parent
    installed = package / 'configs'
    return installed if installed.is_dir() else package.with_name('configs')


def every_key() -> str:
    """Says where all keys are listed."""
    file = folder() / 'base.py'
    is_near = file.is_relative_to(Path.cwd())
    return f'All keys are listed in {file.relative_to(Path.cwd()) if is_near else file}.'


def names() -> list[str]:
    """The names of the experiments that come with the package."""
    return sorted(path.stem for path in folder().glob('*.py') if path.stem not in SHARED)


class ConfigFile(flags.ArgumentParser):
    """Parses NAME or FILE, with :VARIANT for `get_config(VARIANT)`, or `WORKDIR/config.json`."""

    def parse(self, argument: str) -> ConfigDict | None:
        """The config, locked; None for an empty path.

        Raises:
          InputError: there is no such file, or a mistake in it, or what it returns is no config.
        """
        if not argument:
            return None
        if argument.endswith('.json'):
            return _load_workdir_config(Path(argument).expanduser()).lock()
        name, colon, variant = argument.partition(':')
        file = _find(name, argument)
        _make_importable(file.parent)
        try:
            module = _execute(file)
            config = _get_config(module, file, [variant] if colon else [])
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # whatever the file itself raises
            raise InputError(explain(error, file)) from error
        if not isinstance(config, ConfigDict) or not config:
            raise InputError(
                f'{file}: get_config() returns {_type_name(config)}; it must return a ConfigDict '
                'with the keys of configs/base.py. Start it with config = base.get_config(), and '
                'end it with return config.'
            )
        return config.lock()


def _find(name: str, argument: str) -> Path:
    """The absolute path of an experiment's file, given by its path or by its name."""
    file = Path(name).expanduser().absolute()
    if file.is_file():
        return file
    shipped = folder() / f'{name}.py'
    if _NAME.fullmatch(name) and shipped.is_file():
        return shipped
    stem = Path(name).stem
    nearest = difflib.get_close_matches(stem, names(), n=1)
    hint = f' Did you mean --config={nearest[0]}?' if nearest else ''
    what = f'experiment {name!r}' if _NAME.fullmatch(name) else f'file {file}'
    raise InputError(
        f'--config={argument}: there is no {what}.{hint} These come with tarflow_jax: '
        f'{", ".join(names())}. Give your own config by its path, such as --config=mine.py.'
    )


def _make_importable(own: Path) -> None:
    """Lets an experiment say `from configs import base`, wherever it and the command are."""
    package = sys.modules.setdefault('configs', ModuleType('configs'))
    paths = [*getattr(package, '__path__', ()), str(folder())]
    if own.name == 'configs':
        paths.insert(0, str(own))
    package.__path__ = list(dict.fromkeys(paths))


def _load_workdir_config(path: Path) -> ConfigDict:
    """The config of a workdir's `config.json`; keys that it lacks have the values of base.py."""
    from tarflow_jax.keys import KEYS, flatten  # here: they take seconds, which --help has not
    from tarflow_jax.workdir import read_config

    record = flatten(read_config(path.parent))
    config = _execute(folder() / 'base.py').get_config()
    for name, value in record.items():
        if name in KEYS:
            checked = KEYS[name].check(name, value)
            if isinstance(value, bool):
                value = checked  # model.unroll of earlier versions becomes a word
            section, _, key = name.rpartition('.')
            target = config[section] if section else config
            target[key] = tuple(value) if isinstance(value, list) else value
    return config


def _execute(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location('config_file', file)
    if spec is None or spec.loader is None:
        raise InputError(f'--config={file} must be a Python file, with a name that ends in .py.')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _get_config(module: ModuleType, file: Path, arguments: list[str]):
    function = getattr(module, 'get_config', None)
    if not callable(function):
        raise InputError(
            f"{file} has no attribute 'get_config': it must define get_config(), which returns "
            'the config. See configs/digits.py.'
        )
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        given = (
            f'with the variant {arguments[0]!r}, the part after the colon of --config=FILE:VARIANT'
            if arguments
            else 'without a variant; give one as --config=FILE:VARIANT'
        )
        raise InputError(
            f'get_config{inspect.signature(function)} of {file} cannot be called {given}.'
        ) from None
    return function(*arguments)


def explain(error: BaseException, file: Path) -> str:
    """A mistake in a config file, in a sentence or two, with its line."""
    path, line = _error_location(error, file)
    where = f'See line {line} of {path}.' if line else f'See {path}.'
    if words := explain_key(str(error)):
        return f'{words} {where}'
    text = ' '.join(f'{type(error).__name__}: {error}'.rstrip(': ').split())
    return f'the config file cannot be used: {with_period(text)} {where}'


def explain_key(text: str) -> str | None:
    """Explains an error of ml_collections about an unknown key; returns None for other errors."""
    # It quotes a message once for every error that it was wrapped in.
    if odd := re.match(r"Could not parse '(.*?)': Syntax|.*Attempting to lookup: ([^\"]*)", text):
        return f"there is no config key '{odd[1] or odd[2] or ''}'. {every_key()}"
    unquoted = re.sub(r"""[\\"']+""", "'", text.replace('\\n', '\n'))
    key = re.match(r"'?(?:Key ')?(\w+)'(?: does not exist|\n|$)", unquoted)
    if not key:
        return None
    nearest = re.search(r"Did you mean '(\w+)'", unquoted)
    hint = f"; did you mean '{nearest[1]}'?" if nearest else '.'
    return f"there is no config key '{key[1]}'{hint} {every_key()}"


def with_period(text: str) -> str:
    """The text with a full stop, if it has no end of its own."""
    return text if text.endswith(('.', '?')) else f'{text}.'


def _error_location(error: BaseException, file: Path) -> tuple[str, int | None]:
    """Returns the file and line of the innermost frame in the config file's folder."""
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).parent == file.parent:
            return frame.filename, frame.lineno
    return str(file), None


def _type_name(value) -> str:
    if value is None:
        return 'None'
    if isinstance(value, ConfigDict):
        return 'an empty ConfigDict'
    return f'a {type(value).__name__}'
