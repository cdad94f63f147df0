"""The errors that are written for a person; the command line shows them without a traceback."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The input cannot be used as given.

    The message is written for its reader: what was given, what is allowed, and the way out. The
    command line prints it without a traceback and leaves with status 2.
    """


class RunError(Exception):
    """A run that cannot continue; the message says why, what is safe, and what to do.

    The command line prints it without a traceback and leaves with status 1.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that says that there is no such name: the most similar one, if any."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else '.'
