"""The two errors that are written for a person; the command line shows them without a traceback."""


class InputError(ValueError):
    """The input cannot be used as given.

    The message is written for its reader: what was given, what is allowed, and the way out. The
    command line prints it without a traceback and leaves with status 2.
    """


class RunError(Exception):
    """A run that cannot continue; the message says why, what is safe, and what to do.

    The command line prints it without a traceback and leaves with status 1.
    """
