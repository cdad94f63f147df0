"""Compiled programs are kept between runs, so that a command starts quickly the second time."""

import contextlib
import hashlib
import platform
import warnings
from pathlib import Path

import jax
import jaxlib
from jax.experimental.compilation_cache import compilation_cache

from tarflow_jax.downloads import cache_folder
from tarflow_jax.parallel.cores import describe_cpu
from tarflow_jax.parallel.host_memory import runs_on_cpu

_CPU_FIELDS = ('model name', 'flags', 'Features')  # of all that Linux says about it
MAX_BYTES = 2**30  # of all programs of a machine; the oldest are deleted first


def keep_compiled_programs() -> None:
    """Makes JAX keep what it compiles in `$TARFLOW_CACHE`, unless the user has named a folder.

    `JAX_ENABLE_COMPILATION_CACHE=false` turns it off. Where nothing can be written or read, all is
    compiled as if there were no such folder.
    """
    if jax.config.values['jax_compilation_cache_dir']:
        return
    folder = _own_folder()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update('jax_compilation_cache_dir', str(folder))
        jax.config.update('jax_compilation_cache_max_size', MAX_BYTES)
        warnings.filterwarnings('ignore', 'Error (reading|writing) persistent compilation cache')


def share_compiled_programs(workdir: Path) -> None:
    """Makes the processes of a run keep what they compile in `workdir/compiled`, for all to read.

    JAX lets the first process alone write, so the others would never find anything in the folders
    of their own hosts. Changes nothing on CPUs, whose programs are those of one process, nor where
    the user has named a folder.
    """
    if jax.config.values['jax_compilation_cache_dir'] == str(_own_folder()) and not runs_on_cpu():
        jax.config.update('jax_compilation_cache_dir', str(workdir.absolute() / 'compiled'))
        jax.config.update('jax_compilation_cache_max_size', -1)  # no lock: hosts start together
        compilation_cache.reset_cache()  # connecting may have compiled


def _own_folder() -> Path:
    return cache_folder() / 'compiled' / _machine()


def _machine() -> str:
    """A name of this kind of machine: a program for a CPU uses instructions that others lack."""
    parts = [jaxlib.__version__, platform.machine()]
    parts += sorted(line for line in describe_cpu() if line.startswith(_CPU_FIELDS))
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
