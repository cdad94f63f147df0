"""Compiling a config ahead of time for absent hardware, and what that says of memory and time."""
