"""How one process of many joins the others, usually one on each host of a pod, and leaves them."""

import atexit
import contextlib
import dataclasses
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax._src.clusters import ClusterEnv  # who is who under a launcher; it has no public name

from tarflow_jax.errors import InputError, RunError
from tarflow_jax.parallel.hub import Hub
from tarflow_jax.parallel.launchers import launched
from tarflow_jax.parallel.member import GRACE_SECONDS, Member, ignore_late_signals, open_tunnel

_NAMES = ('coordinator', 'number of processes', 'number of this process')
_WITHOUT_PROXY = 'no_grpc_proxy'  # of gRPC, which prefers it to `no_proxy`
_HEARTBEAT_SECONDS = 10**6  # for JAX to wait: members of the hub report sooner, and in words
_FAILURES_SECONDS = 1  # for the failure of another process to arrive

_connecting = False  # has begun, at least
_member: Member | None = None


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """The place of this process among several.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens.
      num_processes: how many processes there are.
      process_id: the number of this one.
      local_device_ids: the devices of this machine that are this process's; None for all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: Sequence[int] | None = None


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
        `coordinator` is given or the environment is that of a launcher (`launchers.LAUNCHERS`).
      coordinator: HOST:PORT at which process 0 listens. It, `num_processes` and `process_id` are
        given all three, or are all found in the launcher's environment.
      num_processes: how many processes there are.
      process_id: the number of this one, in [0, num_processes).
      timeout: how many seconds to wait for the others.

    Raises:
      InputError: the arguments do not go together, or there is no launcher.
      RunError: the coordinator does not answer, or its port is taken. Where other processes never
        come, or fail from here on, the process ends itself with a status and words.
    """
    global _connecting
    _connecting = True
    if info := resolve_process_info(mode, coordinator, num_processes, process_id, timeout):
        _start_jax(info, _join(info, timeout), timeout)


def resolve_process_info(
    mode, coordinator, num_processes, process_id, timeout
) -> ProcessInfo | None:
    """The place of this process among several, None for one on its own; see `connect`."""
    given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
    if mode == 'off' or (mode == 'auto' and not _any_given(given) and not launched()):
        return None
    if timeout < 1:
        raise InputError(f'--coordinator_timeout must be at least 1 second; got {timeout}.')
    if _any_given(given):
        info = ProcessInfo(*check(given))
    else:
        info = _read_launcher(timeout)
    return info if info.num_processes > 1 else None


def is_one_of_several() -> bool:
    """Whether this process has joined others."""
    return _member is not None


def _any_given(given: dict) -> bool:
    return any(value is not None for value in given.values())


def check(given: dict) -> tuple[str, int, int]:
    """The three flags; raises InputError unless all are given and go together."""
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
            f'{given["num_processes"]}, different for every process; got {given["process_id"]}.'
        )
    return given['coordinator'], given['num_processes'], given['process_id']


def _read_launcher(timeout: int) -> ProcessInfo:
    settings: Any = ClusterEnv.auto_detect_unset_distributed_params(
        os.environ.get('JAX_COORDINATOR_ADDRESS'), None, None, None, None, timeout
    )
    missing = [
        f'the {name}' for name, value in zip(_NAMES, settings, strict=False) if value is None
    ]
    if missing:
        raise InputError(
            'this process is one of several (according to --distributed=on or the environment of '
            f'a launcher), but JAX cannot determine {", ".join(missing)}. Give '
            '--coordinator=HOST:PORT, --num_processes and --process_id (under Open MPI 5: '
            '--num_processes=$OMPI_COMM_WORLD_SIZE --process_id=$OMPI_COMM_WORLD_RANK), or start '
            'the processes with srun, mpirun of Open MPI 4 or on a TPU pod; --distributed=off runs '
            'one process alone.'
        )
    coordinator, num_processes, process_id, local_device_ids = settings
    if os.environ.get('JAX_LOCAL_DEVICE_IDS'):  # which JAX reads where none are given
        local_device_ids = None
    return ProcessInfo(coordinator, num_processes, process_id, local_device_ids)


def _join(info: ProcessInfo, timeout: float) -> tuple[Member, int]:
    """This process as a member of the hub, and its port to JAX's coordination service."""
    if info.process_id == 0:
        listener = _listen(info.coordinator)
        service_port = _free_port()
        hub = Hub(listener, info.coordinator, info.num_processes, timeout, service_port)
        connection = socket.create_connection(('127.0.0.1', listener.getsockname()[1]))
        return Member(0, info.num_processes, connection, hub), service_port
    connection = _reach(info.coordinator, timeout)
    member = Member(info.process_id, info.num_processes, connection)
    return member, open_tunnel(_address(info.coordinator))


def _start_jax(info: ProcessInfo, joined: tuple[Member, int], timeout: float) -> None:
    global _member
    _member, service_port = joined
    if not _member.wait_for_all(timeout):
        _member = None
        reason = 'another program is listening there'
        raise RunError(_no_answer(info.coordinator, timeout, reason))
    service = f'127.0.0.1:{service_port}'
    # JAX warns of proxies. The way to this machine leads through none.
    jax.config.update('jax_check_proxy_envs', False)
    without_proxy = os.environ.get(_WITHOUT_PROXY) or os.environ.get('no_proxy') or ''
    os.environ[_WITHOUT_PROXY] = f'{without_proxy},127.0.0.1'
    # Signals are ours: JAX's own service would take SIGTERM away.
    jax.config.update('jax_enable_preemption_service', False)
    jax.distributed.initialize(
        service,
        info.num_processes,
        info.process_id,
        info.local_device_ids,
        cluster_detection_method='deactivate',
        coordinator_bind_address=service,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
    atexit.register(_finish, _member)


def _finish(member: Member) -> None:
    """Disconnects a process at its end: when all are done, and process 0 last."""
    ignore_late_signals()
    try:
        member.wait_for_end()
    except KeyboardInterrupt:
        member.claim_failure_report(130)
        member.abort_all(130, 'interrupted.')
    jax.distributed.shutdown()
    member.wait_until_alone()


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(':')
    return host.strip('[]'), int(port)


def _listen(coordinator: str) -> socket.socket:
    _, port = _address(coordinator)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(('', port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        raise RunError(
            f'process 0 cannot listen at --coordinator={coordinator} ({error.strerror}): choose '
            'a free port, the same for every process.'
        ) from error


def _free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def _reach(coordinator: str, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    while True:
        try:
            left = max(deadline - time.monotonic(), 0.1)
            connection = socket.create_connection(_address(coordinator), timeout=left)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise RunError(_no_answer(coordinator, timeout, error)) from error
            time.sleep(0.1)
        else:
            connection.settimeout(None)
            return connection


def _no_answer(coordinator, timeout, reason) -> str:
    return (
        f'the coordinator {coordinator} did not answer within {timeout} seconds ({reason}). Is '
        'process 0 running there, and can this host reach that port? --coordinator_timeout sets '
        'the seconds.'
    )


def abort_all(status: int, message: object) -> None:
    """Ends all other processes after this one failed, with its status and message.

    They may be waiting for it in the middle of a step, so nothing but this would end them soon.
    Returns at once where there are no others; does not return where there are.
    """
    if _member:
        sys.stdout.flush()
        sys.stderr.flush()
        _member.abort_all(status, str(message))


def abort_before_connecting(
    status: int, message: object, mode, coordinator, num_processes, process_id
) -> None:
    """Like `abort_all`, for a process that fails before `connect`, whose arguments it takes."""
    if _connecting:
        return
    with contextlib.suppress(InputError, RunError):
        if info := resolve_process_info(
            mode, coordinator, num_processes, process_id, GRACE_SECONDS
        ):
            member, _ = _join(info, GRACE_SECONDS)
            member.claim_failure_report(status)
            member.abort_all(status, str(message))


def claim_failure_report(status: int) -> None:
    """Claims the right to report a failure; if another process failed first, it ends this one.

    When a process ends, the collectives of the others fail as well, so the failure of this process
    may be only a consequence. Must be called before the failure is reported.

    Args:
      status: the exit status of the failure. An invalid command (2) is never such a consequence.
    """
    if _member:
        _member.claim_failure_report(status, _FAILURES_SECONDS if status == 1 else 0)
