"""Collective operations on host values, among the processes of a run.

All functions except `is_main` and `print_on_main` are collective: every process must call them.
With a single process, they send nothing and wait for nothing.
"""

import json
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from tarflow_jax.errors import RunError


def is_main() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return jax.process_index() == 0


def print_on_main(text: str) -> None:
    """Prints a text, if there is any, in the main process alone."""
    if text and is_main():
        print(text, flush=True)


def all_true(ok: bool) -> bool:
    """Whether `ok` is true in every process."""
    return bool(multihost_utils.process_allgather(np.array([ok])).all())


def all_max(number: int) -> int:
    """The largest of the int32 `number` of every process."""
    return int(multihost_utils.process_allgather(np.array([number], np.int32)).max())


def broadcast_from_main(value: Any) -> Any:
    """The `value` of process 0, a value of JSON, in every process."""
    return all_gather(value if is_main() else None)[0]


def check_same(description: dict[str, Any]) -> None:
    """Checks that every process has the same description.

    Args:
      description: values of JSON by name, dictionaries of them too: a config, sizes, a step.

    Raises:
      RunError: the descriptions differ; in every process, with the same words.
    """
    first, *others = [flatten_dict(d, sep='.') for d in all_gather(description)]
    for process, other in enumerate(others, start=1):
        for name in first | other:
            pair = [json.dumps(flat[name]) if name in flat else 'none' for flat in (first, other)]
            if pair[0] != pair[1]:
                raise RunError(
                    f'the processes of this run differ in {name}: process 0 has {pair[0]}, process '
                    f'{process} has {pair[1]}. Start all of them with the same code, the same '
                    'flags and the same files.'
                )


def all_gather(value: Any) -> list:
    """The JSON value of every process, in their order."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    padded = np.full(all_max(len(text)), ord(' '), np.uint8)
    padded[: len(text)] = text
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]
