"""Checks that a requested number of samples fits in memory and on disk."""

import shutil
from pathlib import Path

from tarflow_jax.errors import InputError
from tarflow_jax.parallel.memory import host_bytes
from tarflow_jax.quantities import format_bytes

_MAX_SAMPLES = 2**31 - 2**20  # samples, which int32 counts, a last batch included


def check_samples(
    key: str,
    num_samples: int,
    *,
    memory_each: int,
    disk_each: int = 0,
    folder: Path | None = None,
) -> None:
    """Checks that `num_samples` samples fit into the memory of this host and onto the disk.

    Args:
      key: the name of the config key, for the error message.
      num_samples: the number of samples.
      memory_each: bytes of memory that a sample takes until all are written.
      disk_each: bytes of disk that a sample takes.
      folder: an existing folder for the files; None if there are none.

    Raises:
      InputError: the samples do not fit; the message says how many do.
    """
    memory = host_bytes()
    most = min(_MAX_SAMPLES, memory // memory_each)
    needs = [
        f'{format_bytes(num_samples * memory_each)} of memory ({format_bytes(memory)} available)'
    ]
    if folder:
        disk = shutil.disk_usage(folder).free
        most = min(most, disk // disk_each)
        needs.append(
            f'{format_bytes(num_samples * disk_each)} of disk ({format_bytes(disk)} free for '
            f'{folder})'
        )
    if num_samples > most:
        raise InputError(
            f'{key}={num_samples} does not fit on this machine: the samples need '
            f'{" and ".join(needs)}. {f"Choose at most {most}." if most else "Make room first."}'
        )
