"""Programs that start several processes of one command, as their environment shows."""

import contextlib
import os

# The environment of a launcher of several processes, which `auto` looks for: a variable, and what
# its value says. A laptop has none of them, nor has a batch script of Slurm outside of `srun`.
LAUNCHERS = (
    ('SLURM_STEP_NUM_TASKS', lambda value: int(value) > 1),  # srun --ntasks=2
    ('OMPI_COMM_WORLD_SIZE', lambda value: int(value) > 1),  # mpirun -n 2
    ('TPU_WORKER_HOSTNAMES', lambda value: ',' in value),  # a pod slice of TPUs
    ('TPU_PROCESS_ADDRESSES', lambda value: ',' in value),
    ('MEGASCALE_COORDINATOR_ADDRESS', bool),  # several slices
    ('JAX_COORDINATOR_ADDRESS', bool),
)


def launched() -> bool:
    """Whether a launcher says, in the environment, that this is one process of several."""
    for name, says_several in LAUNCHERS:
        value = os.environ.get(name, '')
        with contextlib.suppress(ValueError):
            if value and says_several(value):
                return True
    return False
