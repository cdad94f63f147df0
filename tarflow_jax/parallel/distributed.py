"""Many processes that run one program, usually one on each host of a pod.

With one process everything here is trivial: nothing is sent, and nothing waits.
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # its key-value store has no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding

from tarflow_jax.errors import InputError, RunError
from tarflow_jax.parallel import rules

MODES = ('auto', 'on', 'off')

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

_FAILED, _LEFT = 'tarflow_jax/failed', 'tarflow_jax/left'
_WORDS_AT_ONCE = 2**20
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10  # for the others to hear of a failure
_SHUTDOWN_SECONDS = 3600  # for which those that are done wait for one that still writes


def connect(
    mode: str = 'auto',
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> None:
    """Joins this process to the others; must come before anything else that JAX does.

    Args:
      mode: 'off' for a process on its own; 'on' for one of several; 'auto' for one of several if
        `coordinator` is given or the environment is that of a launcher (`LAUNCHERS`).
      coordinator: HOST:PORT at which process 0 listens. It, `num_processes` and `process_id` are
        given all three, or are all found in the launcher's environment.
      num_processes: of them all.
      process_id: of this one, in [0, num_processes).
      timeout: seconds to wait for the others.

    Raises:
      InputError: the arguments do not go together, or there is no launcher to ask.
      RunError: the coordinator does not answer, or its port is taken. Where only JAX can wait, for
        processes that never come, the process ends itself with status 1 and the same words.
    """
    given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
    if mode == 'off' or (mode == 'auto' and not _any_given(given) and not launched()):
        return
    if timeout < 1:
        raise InputError(f'--coordinator_timeout must be at least 1 second; got {timeout}.')
    if _any_given(given):
        coordinator = check(given)
        if num_processes == 1:
            return
        if process_id == 0:
            _check_port_is_free(coordinator)
        else:
            _wait_for_answer(coordinator, timeout)
        given['cluster_detection_method'] = 'deactivate'
    # Signals are ours: JAX's own service would take SIGTERM away.
    jax.config.update('jax_enable_preemption_service', False)
    with _ends_when_nobody_comes(coordinator, num_processes, timeout):
        _initialize(given, timeout)
    _watch_for_failures()


def _any_given(given: dict) -> bool:
    return any(value is not None for value in given.values())


def launched() -> bool:
    """Whether a launcher says, in the environment, that this is one process of several."""
    for name, says_several in LAUNCHERS:
        value = os.environ.get(name, '')
        with contextlib.suppress(ValueError):
            if value and says_several(value):
                return True
    return False


def check(given: dict) -> str:
    """The coordinator; raises InputError unless all three flags are given and go together."""
    missing = [f'--{name}' for name, value in given.items() if value is None]
    if missing:
        raise InputError(
            f'{" and ".join(missing)} must be given too: --coordinator=HOST:PORT, --num_processes '
            'and --process_id go together (or leave all three to a launcher such as srun).'
        )
    host, _, port = given['coordinator'].rpartition(':')
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InputError(
            f'--coordinator must be HOST:PORT, the same for every process, with the host of '
            f'process 0 and a free port of it (10.0.0.1:8476); got {given["coordinator"]!r}.'
        )
    if given['num_processes'] < 1:
        raise InputError(f'--num_processes must be at least 1; got {given["num_processes"]}.')
    if not 0 <= given['process_id'] < given['num_processes']:
        raise InputError(
            f'--process_id must lie in 0..{given["num_processes"] - 1} for --num_processes='
            f'{given["num_processes"]}, another for every process; got {given["process_id"]}.'
        )
    return given['coordinator']


def _initialize(given: dict, timeout: int) -> None:
    names = {'coordinator': 'coordinator_address'}
    try:
        jax.distributed.initialize(
            **{names.get(name, name): value for name, value in given.items()},
            initialization_timeout=timeout + 60,  # JAX would not raise but abort
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise InputError(
            f'--distributed=on, and JAX finds no launcher to ask for the other processes ({error}) '
            'Give --coordinator=HOST:PORT, --num_processes and --process_id, or start the '
            'processes with srun, mpirun or on a TPU pod; --distributed=off is one process alone.'
        ) from error


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(':')
    return host.strip('[]'), int(port)


def _check_port_is_free(coordinator: str) -> None:
    """JAX would crash."""
    _, port = _address(coordinator)
    try:
        with socket.create_server(('', port), reuse_port=False):
            pass
    except OSError as error:
        raise RunError(
            f'process 0 cannot listen at --coordinator={coordinator} ({error.strerror}): choose '
            'a free port, the same for every process.'
        ) from error


def _wait_for_answer(coordinator: str, timeout: int) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            left = max(deadline - time.monotonic(), 0.1)
            with socket.create_connection(_address(coordinator), timeout=left):
                return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise RunError(_no_answer(coordinator, timeout, error)) from error
        time.sleep(0.1)


def _no_answer(coordinator, timeout, reason) -> str:
    return (
        f'the coordinator {coordinator} did not answer within {timeout} seconds ({reason}). Is '
        'process 0 running there, and can this host reach that port? --coordinator_timeout sets '
        'the seconds.'
    )


@contextlib.contextmanager
def _ends_when_nobody_comes(coordinator, num_processes, timeout):
    """Ends the process with a sentence where JAX, which cannot be interrupted, would abort."""

    def end():
        address = coordinator or global_state.coordinator_address or 'that the launcher named'
        if global_state.process_id == 0:
            message = (
                f'process 0 waited {timeout} seconds at {address} and not all of the '
                f'{num_processes or "other"} processes came. Start every one of them, with the '
                'same --coordinator; --coordinator_timeout sets the seconds.'
            )
        else:
            message = _no_answer(address, timeout, 'not as a coordinator of JAX')
        print(f'error: {message}', file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(timeout, end)
    timer.daemon = True
    timer.start()
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # or Ctrl-C would have to wait too
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        timer.cancel()


def is_connected() -> bool:
    """Whether this is one process of several."""
    return jax.distributed.is_initialized()


def is_main() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return jax.process_index() == 0


def agree(ok: bool) -> bool:
    """Whether `ok` is true in every process; all of them must ask."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.array([ok])).all())


def largest(number: int) -> int:
    """The largest of the int32 `number` of every process; all of them must ask."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array([number], np.int32)).max())


def of_main(value: Any) -> Any:
    """The `value` of process 0 in every process, for what JSON can say; all of them must ask."""
    return _of_all(value if is_main() else None)[0]


def array_of_main(array: np.ndarray) -> np.ndarray:
    """The array of process 0 in every process; others give one of its shape and 32-bit type."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def check_same(description: dict[str, Any]) -> None:
    """Checks that every process has the same description; all of them must ask.

    Args:
      description: values of JSON by name, dictionaries of them too: a config, sizes, a step.

    Raises:
      RunError: the descriptions differ; in every process, with the same words.
    """
    first, *others = [_flatten(description) for description in _of_all(description)]
    for process, other in enumerate(others, start=1):
        for name in first | other:
            pair = [json.dumps(flat[name]) if name in flat else 'none' for flat in (first, other)]
            if pair[0] != pair[1]:
                raise RunError(
                    f'the processes of this run differ in {name}: process 0 has {pair[0]}, process '
                    f'{process} has {pair[1]}. Start all of them with the same code, the same '
                    'flags and the same files.'
                )


def _of_all(value: Any) -> list:
    """The JSON value of every process, in their order."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    if jax.process_count() == 1:
        return [json.loads(text.tobytes())]
    padded = np.full(largest(len(text)), ord(' '), np.uint8)
    padded[: len(text)] = text
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]


def _flatten(description: dict[str, Any]) -> dict[str, Any]:
    """The values of a nested dictionary, by names such as `config.train.batch_size`."""
    flat = {}
    for name, value in description.items():
        if isinstance(value, dict):
            flat |= {f'{name}.{inner}': leaf for inner, leaf in _flatten(value).items()}
        else:
            flat[name] = value
    return flat


def fetch(tree):
    """Arrays as NumPy, whole, in every process, however they are laid out over the devices."""

    def fetch_array(x):
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return jax.device_get(x)

    return jax.tree.map(fetch_array, tree)


def fetch_rows(tree):
    """The rows of batches that the devices of this process hold, as NumPy, as `local_rows` orders.

    Args:
      tree: arrays [B, ...] laid out as `put_rows` does; of one process, all rows.
    """

    def fetch_array(x):
        held = {shard.index[0].indices(len(x))[0]: shard for shard in x.addressable_shards}
        return np.concatenate([np.asarray(held[start].data) for start in sorted(held)])

    return jax.tree.map(fetch_array, tree)


def gather_rows(array: np.ndarray) -> np.ndarray:
    """The rows [n, ...] of every process, one process after the other; n must be the same in all.

    For numbers of 32 bits or fewer.
    """
    if jax.process_count() == 1:
        return array
    return multihost_utils.process_allgather(array, tiled=True)


def sum_float64(tree):
    """The sums over processes of float64 NumPy arrays, in float64, the same in every process.

    JAX would round them to float32: they travel as pairs of 32-bit words.
    """
    if jax.process_count() == 1:
        return tree

    def sum_array(x):
        words = np.ascontiguousarray(x, np.float64).reshape(-1).view(np.uint32)
        # In parts: every device holds those of all processes at once.
        parts = np.split(words, range(_WORDS_AT_ONCE, len(words), _WORDS_AT_ONCE))
        sums = []
        for part in parts:
            gathered = np.ascontiguousarray(multihost_utils.process_allgather(part))
            sums.append(gathered.view(np.float64).sum(axis=0))
        return np.concatenate(sums).reshape(x.shape)

    return jax.tree.map(sum_array, tree)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a batch that the devices of this process hold, ascending."""
    sharding = rules.batch_sharding(mesh)
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in held]))


def put_rows(tree, mesh: Mesh, batch_size: int, rows: np.ndarray):
    """Lays a batch over the mesh, of which this process has some rows.

    Args:
      tree: NumPy arrays [len(rows), ...].
      mesh: the devices of all processes.
      batch_size: rows of the batch over all processes.
      rows: which ones they are; all that `local_rows` names, ascending.

    Returns:
      Arrays [batch_size, ...], split over the mesh.
    """
    sharding = rules.batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put_array(x):
        def shard(index):
            start, stop, _ = index[0].indices(batch_size)
            first, last = np.searchsorted(rows, (start, stop))
            return x[first:last]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, shard)

    return jax.tree.map(put_array, tree)


def put(tree, shardings):
    """Lays arrays, which every process has whole on its host, over the devices."""

    def put_array(x, sharding: Sharding):
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put_array, tree, shardings)


def leave(status: int, message: object) -> None:
    """Before a process that failed ends: ends all the others with its status and words.

    They may be waiting for it in the middle of a step, so nothing but this would end them soon.
    Returns at once where there are no others; does not return where there are.
    """
    if not is_connected():
        return
    me = jax.process_index()
    client: Any = global_state.client
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(Exception):  # the others may be gone
        client.key_value_set(_FAILED, f'{me} {status} {message}', allow_overwrite=True)
        _wait_for_the_others_to_hear(client, me)
    os._exit(status)


def _wait_for_the_others_to_hear(client, me: int) -> None:
    """Process 0 holds the store in which the others read."""
    client.key_value_set(f'{_LEFT}/{me}', '.')
    deadline = time.monotonic() + _GRACE_SECONDS
    while me == 0 and time.monotonic() < deadline:
        if len(client.key_value_dir_get(_LEFT)) == jax.process_count():
            break
        time.sleep(_POLL_SECONDS / 10)
    time.sleep(_POLL_SECONDS / 10)  # they have said that they leave, and now they do


def _watch_for_failures() -> None:
    """From now on, this process ends as soon as another one has failed."""
    stop = threading.Event()
    atexit.register(stop.set)
    me = jax.process_index()
    client: Any = global_state.client

    def watch():
        while not stop.wait(_POLL_SECONDS):
            try:
                failure = client.key_value_try_get(_FAILED)
            except Exception:  # not there, or the store is gone, of which JAX itself takes note
                continue
            process, status, message = failure.split(' ', 2)
            if int(process) == me:
                return
            print(f'error: process {process} failed: {message}', file=sys.stderr, flush=True)
            with contextlib.suppress(Exception):
                client.key_value_set(f'{_LEFT}/{me}', '.')
            os._exit(int(status))

    threading.Thread(target=watch, daemon=True).start()
