"""Errors whose messages are written for the user; the command line prints no traceback for them."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The input cannot be used as given.

    The message is written for the user: what was given, what is allowed, and what to do. The
    command line prints it without a traceback and exits with status 2.
    """


class RunError(Exception):
    """A run that cannot continue; the message says why, what is safe, and what to do.

    The command line prints it without a traceback and exits with status 1.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar known name, if there is one."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else '.'
