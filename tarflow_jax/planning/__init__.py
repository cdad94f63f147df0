"""Compiling a config ahead of time for hardware that is not here, and what that foretells."""
