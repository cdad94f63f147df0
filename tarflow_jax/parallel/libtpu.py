"""libtpu, the compiler and driver of TPUs, on a machine that has none."""

import contextlib
import glob
import os
from collections.abc import Iterator

# libtpu queries a metadata server that is not there, and logs at length that there is no TPU.
_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_STDERR_LOG_LEVEL': '3',
    'TPU_MIN_LOG_LEVEL': '3',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # another process may plan or test at the same time
}
_DEVICES = ('/dev/accel*', '/dev/vfio/*')


@contextlib.contextmanager
def quiet_without_tpu() -> Iterator[None]:
    """Keeps libtpu, where it is installed for plans, from complaining that there is no TPU.

    JAX loads it when it looks for devices, for the first time or for a topology. Does nothing on a
    machine with TPUs; the environment is afterwards what it was.
    """
    has_tpu = any(glob.glob(pattern) for pattern in _DEVICES)
    missing = set() if has_tpu else _ENVIRONMENT.keys() - os.environ.keys()
    os.environ.update({name: _ENVIRONMENT[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]
