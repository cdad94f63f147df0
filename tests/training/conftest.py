"""Orbax's notes are kept off the records of tests, as off a program's terminal."""

import pytest

from tarflow_jax.training.checkpoint import quiet_orbax


@pytest.fixture(autouse=True)
def quiet():
    undo = quiet_orbax()
    yield
    undo()
