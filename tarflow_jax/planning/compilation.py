"""Compiling a program without its hardware, and what the compiler says of it."""

import dataclasses
import re
import time

import jax

from tarflow_jax.planning import hlo
from tarflow_jax.planning.chips import Chip

_QUICK = {'exec_time_optimization_effort': -1.0}
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
    """A program for one device, and whether the device's memory is large enough.

    `peak_bytes` is the memory that it takes at once: arguments, results, temporaries, code. Where
    the compiler gave up there is no `entry`, the compiled module, and perhaps no `peak_bytes`.
    """

    fits: bool
    peak_bytes: float | None
    argument_bytes: float = 0.0
    result_bytes: float = 0.0
    compile_seconds: float = 0.0
    entry: hlo.Computation | None = None


def compile_program(lowered, chip: Chip, *, quick: bool = False) -> Program:
    """Compiles a traced program (`jax.stages.Lowered`) for devices of a kind.

    With `quick`, a TPU's compiler takes the first memory layout that it finds, in a tenth of the
    time; products and messages are the same, but there is more HBM traffic. A program that does not
    fit into the memory has fits=False.
    """
    start = time.perf_counter()
    try:
        compiled = lowered.compile({**chip.options, **(_QUICK if quick and chip.is_tpu else {})})
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        seconds = time.perf_counter() - start
        return Program(False, needed_bytes(str(error)), compile_seconds=seconds)
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    arguments, results = memory.argument_size_in_bytes, memory.output_size_in_bytes
    rest = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    peak = arguments + results - memory.alias_size_in_bytes + rest
    entry = hlo.parse(compiled.as_text())
    return Program(peak <= chip.hbm_bytes, peak, arguments, results, seconds, entry)


def needed_bytes(message: str) -> float | None:
    """Bytes a device that a program would take, from the compiler's out-of-memory error."""
    number, limits = r'([\d.]+)([KMGT]?)', r' of [\d.]+[KMGT]? hbm|\) exceeds available HBM'
    used = re.search(rf'(?:Used |\(){number}(?:{limits})', message)
    return float(used[1]) * _UNITS[used[2]] if used else None
