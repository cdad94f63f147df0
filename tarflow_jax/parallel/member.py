"""The client of the hub of process 0, in each of several processes.

JAX would abort a process, with a stack, as soon as its connection to the coordination service of
process 0 breaks. So that connection leads through this process's tunnel, whose near end never
breaks, and the member's own connection reports the end of process 0, in words.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from tarflow_jax.parallel.hub import TUNNEL, Hub, enable_keepalive, killed_message

GRACE_SECONDS = 10  # for the others to receive a failure


class Member:
    """This process among all.

    Args:
      process: the number of this process.
      num_processes: how many processes there are.
      connection: the connection to the hub.
      hub: the hub itself in process 0, which has to be the last to leave.
    """

    def __init__(
        self, process: int, num_processes: int, connection: socket.socket, hub: Hub | None = None
    ):
        enable_keepalive(connection)
        self._connection = connection
        self._hub = hub
        self._own_status: int | None = None
        self._report_lock = threading.Lock()  # held by whichever thread reports the end
        self._reported = threading.Event()
        self._failure = threading.Event()  # of another process, or of the hub
        self._received = {name: threading.Event() for name in ('welcome', 'begin', 'end')}
        self._send({'process': process, 'of': num_processes})
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_for_all(self, timeout: float) -> bool:
        """Whether a hub is there; returns once all processes have come.

        Args:
          timeout: seconds for the hub's first answer. The hub decides how long to wait for others.
        """
        return self._received['welcome'].wait(timeout) and self._received['begin'].wait()

    def wait_for_end(self) -> None:
        """Says that this process is done, and returns once all are."""
        self._send({'done': True})
        self._received['end'].wait()

    def claim_failure_report(self, status: int, seconds: float = 0) -> None:
        """Must be called before this process reports its own failure and `abort_all` ends it.

        If another process failed before, or does within `seconds`, that ends this one instead, and
        the call does not return. So a terminal shows one failure for each process.
        """
        self._failure.wait(seconds)
        if not self._report_lock.acquire(blocking=False):
            threading.Event().wait()  # for `_exit`
        self._own_status = status

    def abort_all(self, status: int, words: str) -> None:
        """Ends all other processes with `status` and `words`, and then this one with `status`."""
        self._reported.set()
        self._send({'failed': [status, words]})
        time.sleep(GRACE_SECONDS)  # `_listen` ends it sooner, once all others know
        os._exit(status)

    def wait_until_alone(self) -> None:
        """In process 0, lets all others leave before."""
        if self._hub:
            self._hub.wait_until_alone(GRACE_SECONDS)

    def _send(self, message: Any):
        with contextlib.suppress(OSError):  # `_listen` notices it
            self._connection.sendall(json.dumps(message).encode() + b'\n')

    def _listen(self):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            for line in self._connection.makefile('rb'):
                message = json.loads(line)
                if 'failed' in message:
                    self._exit(*message['failed'])
                self._received[message].set()
        if self._received['welcome'].is_set() and not self._received['end'].is_set():
            self._exit(1, killed_message(0))

    def _exit(self, status: int, words: str):
        self._failure.set()
        if self._report_lock.acquire(blocking=False):
            print(f'error: {words}', file=sys.stderr, flush=True)
        else:
            self._reported.wait(GRACE_SECONDS)
        self.wait_until_alone()
        os._exit(status if self._own_status is None else self._own_status)


def open_tunnel(address: tuple[str, int]) -> int:
    """The port of this machine through which JAX reaches its service in process 0."""
    listener = socket.create_server(('127.0.0.1', 0))
    threading.Thread(target=_serve, args=(listener, address), daemon=True).start()
    return listener.getsockname()[1]


def _serve(listener: socket.socket, address: tuple[str, int]):
    near_ends = []  # never closed: JAX would abort
    while True:
        near, _ = listener.accept()
        near_ends.append(near)
        with contextlib.suppress(OSError):
            far = socket.create_connection(address)
            enable_keepalive(far)
            far.sendall(TUNNEL)
            threading.Thread(target=_forward, args=(near, far), daemon=True).start()
            threading.Thread(target=_copy, args=(far, near), daemon=True).start()


def _forward(near: socket.socket, far: socket.socket):
    _copy(near, far)
    with contextlib.suppress(OSError):
        far.shutdown(socket.SHUT_WR)


def _copy(source: socket.socket, sink: socket.socket):
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            sink.sendall(data)


def ignore_late_signals() -> None:
    """Ignores SIGTERM and SIGHUP, so that a finished process keeps waiting for the others."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
