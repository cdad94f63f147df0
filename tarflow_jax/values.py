"""Validators of settings, such as whole numbers, choices and paths.

Every `check(name, value)` returns the value as a plain Python object, or raises InputError with
what is allowed.
"""

import dataclasses
import math
import operator
import os
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tarflow_jax.errors import InputError

INT32_MAX = 2**31 - 1  # what devices count in
_MAX_SIDE = 2**20  # pixels of an image
_MAX_SHOWN_LENGTH = 80  # characters of a value that are shown
_MIN_NORMAL = float(np.finfo(np.float32).tiny)  # devices read less than that as zero


@dataclasses.dataclass(frozen=True)
class Integer:
    """A whole number from `low` to `high`; `words` replace those for what is too low."""

    low: int
    high: int = INT32_MAX
    words: str = ''

    def check(self, name: str, value) -> int:
        if isinstance(value, bool | np.bool_) or not hasattr(value, '__index__'):
            raise_invalid(name, 'must be a whole number', value)
        try:
            number = operator.index(value)
        except TypeError:  # an array of several, or one that `jit` traces
            raise_invalid(name, 'must be a whole number', value)
        if number < self.low:
            raise_invalid(name, self.words or f'must be at least {self.low}', number)
        if number > self.high:
            raise_invalid(name, f'must be at most {self.high}', number)
        return number


@dataclasses.dataclass(frozen=True)
class Float:
    """A number in [low, high]; `exclude_low` excludes `low`, `exclude_high` excludes `high`."""

    low: float
    high: float
    exclude_low: bool = False
    exclude_high: bool = False

    def check(self, name: str, value) -> float:
        number = _as_float(name, value)
        if self.exclude_high and not self.low <= number < self.high:
            raise_invalid(name, f'must lie in [{self.low}, {self.high})', value)
        smallest = self.low + _MIN_NORMAL if self.exclude_low else self.low
        if not number >= smallest:
            at_least = 'must be above' if self.exclude_low else 'must be at least'
            raise_invalid(name, f'{at_least} {self.low}', value)
        if number > self.high:
            raise_invalid(name, f'must be at most {self.high:g}', value)
        return number


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few names."""

    names: tuple[str, ...]

    def check(self, name: str, value) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise_invalid(name, f'must be one of {", ".join(self.names)}', value)
        return value


class Boolean:
    """True or False, and nothing that merely counts as one of them."""

    def check(self, name: str, value) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise_invalid(name, 'must be True or False', value)
        return bool(value)


class String:
    """A text, such as a name or a path, as JSON and every library can write it."""

    def check(self, name: str, value) -> str:
        if not isinstance(value, str) or '\0' in value:
            raise_invalid(name, 'must be a string', value)
        try:
            value.encode()
        except UnicodeEncodeError:  # the bytes of a file name that Python could not decode
            words = 'must be a string in UTF-8 (set PYTHONUTF8=1 if the locale is a different one)'
            raise_invalid(name, words, value)
        return value


class PathValue:
    """The path of a file or a folder, ~ being the home folder."""

    def check(self, name: str, value) -> Path:
        text = String().check(name, os.fspath(value) if isinstance(value, os.PathLike) else value)
        if not text.strip():
            raise_invalid(name, 'must be a path', text)
        try:
            return Path(text).expanduser()
        except RuntimeError as error:  # a ~user that there is not
            raise InputError(f'{name} {text} cannot be used: {error}') from error


class Strings:
    """Several texts."""

    def check(self, name: str, value) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise_invalid(name, "must be a tuple of strings, such as ('test', 'train[:9%]')", value)
        return tuple(value)


class ImageShape:
    """Height, width and channels, each of at most `_MAX_SIDE`."""

    def check(self, name: str, value) -> tuple[int, int, int]:
        sides = list(value) if isinstance(value, list | tuple) or np.ndim(value) == 1 else []
        side = Integer(1, _MAX_SIDE)
        try:
            height, width, channels = (side.check(name, number) for number in sides)
        except ValueError:  # InputError is one, too
            raise_invalid(
                name,
                'must be three positive whole numbers, height, width and channels (8,8,1)'
                + (f', of at most {_MAX_SIDE}' if _is_too_large(sides, _MAX_SIDE) else ''),
                value,
            )
        return height, width, channels


def raise_invalid(name: str, words: str, value: Any) -> NoReturn:
    """Raises InputError with what is allowed and what was given."""
    raise InputError(f'{name} {words}; got {format_value(value)}.')


def format_value(value) -> str:
    """A value as a message shows it, cut if it is long."""
    if isinstance(value, int) and abs(value) > 10**_MAX_SHOWN_LENGTH:
        return 'a number of many digits'  # more than Python would print, perhaps
    text = str(value) if isinstance(value, int | float | np.number) else repr(value)
    text = ' '.join(text.split())
    return text if len(text) <= _MAX_SHOWN_LENGTH else f'{text[:_MAX_SHOWN_LENGTH]}...'


def _as_float(name: str, value) -> float:
    no_number = bool | np.bool_ | str | bytes | list | tuple | None
    if isinstance(value, no_number) or np.ndim(value):
        raise_invalid(name, 'must be a number', value)
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):  # no number at all, or one that `jit` traces
        raise_invalid(name, 'must be a number', value)


def _is_too_large(sides, high: int) -> bool:
    return any(isinstance(side, int) and side > high for side in sides)
