"""libtpu, the compiler and driver of TPUs, on a machine that has none."""

import glob
import os

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


def quiet_without_tpu() -> None:
    """Keeps libtpu, where it is installed for plans, from complaining that there is no TPU.

    To be called before JAX looks for devices. Does nothing on a machine with TPUs.
    """
    if not any(glob.glob(pattern) for pattern in _DEVICES):
        for name, answer in _ENVIRONMENT.items():
            os.environ.setdefault(name, answer)
