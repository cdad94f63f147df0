"""A server in process 0 through which all processes learn when one of them ends or fails.

Each process, process 0 too, holds a TCP connection to the hub for as long as it lives. So the
kernel reports a process that was killed at once, and a slow one is never taken for dead. The
messages are lines of JSON:

    to the hub     {"process": i, "of": n}     the first one
                   {"failed": [status, words]}
                   {"done": true}              it has nothing left to do
    from the hub   "welcome"
                   "begin"                     all have come
                   {"failed": [status, words]} all end, as one failed or was killed
                   "end"                       all are done

A connection that begins with the line "tunnel" leads to JAX's coordination service instead, so that
one port is enough.
"""

import asyncio
import contextlib
import json
import socket
import threading
from typing import Any

TUNNEL = json.dumps('tunnel').encode() + b'\n'
_MAX_MESSAGE_LENGTH = 4000  # of a failure, which travels as one line
_SERVICE_SECONDS = 60  # for JAX's service to listen, once all have come
# A machine that went away sends nothing: after 30 s of silence it is probed, for 30 s.
_SILENCE = {'TCP_KEEPIDLE': 30, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 6, 'TCP_USER_TIMEOUT': 60_000}


class Hub:
    """Serves in a thread of its own.

    Args:
      listener: the socket at which the others find it.
      address: its HOST:PORT, for messages.
      num_processes: how many processes there are.
      timeout: the seconds within which all have to connect.
      service_port: the port of this machine at which JAX's coordination service listens.
    """

    def __init__(
        self,
        listener: socket.socket,
        address: str,
        num_processes: int,
        timeout: float,
        service_port: int,
    ):
        self._listener = listener
        self._address = address
        self._num_processes = num_processes
        self._timeout = timeout
        self._service_port = service_port
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._joined: set[int] = set()
        self._num_awaited = num_processes  # not yet connected
        self._done: set[int] = set()
        self._failure: dict | None = None
        self._alone = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    def wait_until_alone(self, seconds: float) -> None:
        """Returns once all other processes came and left; at the latest after `seconds`."""
        self._alone.wait(seconds)

    async def _serve(self):
        async with await asyncio.start_server(self._accept, sock=self._listener):
            await asyncio.sleep(self._timeout)
            if missing := sorted(set(range(self._num_processes)) - self._joined):
                self._fail(1, _missing_processes_message(self._address, self._timeout, missing))
                self._num_awaited = 0
                self._update_alone()
            await asyncio.Event().wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        enable_keepalive(writer.get_extra_info('socket'))
        with contextlib.closing(writer), contextlib.suppress(OSError, ValueError, TypeError):
            line = await reader.readline()
            if line == TUNNEL:
                await self._tunnel(reader, writer)
                return
            hello = json.loads(line)
            if not isinstance(hello, dict) or not {'process', 'of'} <= hello.keys():
                return  # a stranger
            _send(writer, 'welcome')
            await self._serve_process(hello['process'], hello['of'], reader, writer)

    async def _serve_process(self, process: int, num_processes: int, reader, writer):
        """Serves a process from its first message to its end."""
        self._num_awaited -= 1
        if num_processes != self._num_processes or process in self._joined:
            words = _rejection_message(process, num_processes, self._num_processes)
            _send(writer, {'failed': [2, words]})
            if len(self._joined) < self._num_processes:  # else a run under way does not mind
                self._fail(2, words)
            return
        self._writers[process] = writer
        self._joined.add(process)
        if self._failure:
            _send(writer, self._failure)
        elif len(self._joined) == self._num_processes:
            self._send_to_all('begin')
        try:
            while line := await reader.readline():
                self._handle_message(process, json.loads(line))
        finally:
            if self._num_processes > len(self._done):
                self._fail(1, killed_message(process))
            del self._writers[process]
            self._update_alone()

    def _update_alone(self):
        if self._num_awaited <= 0 and self._writers.keys() <= {0}:
            self._alone.set()

    def _handle_message(self, process: int, message: dict):
        if 'failed' in message:
            status, words = message['failed']
            self._fail(status, f'process {process} failed: {words[:_MAX_MESSAGE_LENGTH]}')
        else:
            self._done.add(process)
            if len(self._done) == self._num_processes:
                self._send_to_all('end')

    def _fail(self, status: int, words: str):
        """The first failure is the cause of all that follow."""
        if not self._failure:
            self._failure = {'failed': [status, words]}
            self._send_to_all(self._failure)

    def _send_to_all(self, message):
        for writer in self._writers.values():
            _send(writer, message)

    async def _tunnel(self, reader, writer):
        async with asyncio.timeout(_SERVICE_SECONDS):
            while True:
                with contextlib.suppress(ConnectionError):
                    far = await asyncio.open_connection('127.0.0.1', self._service_port)
                    break
                await asyncio.sleep(0.02)
        with contextlib.closing(far[1]):
            await asyncio.gather(_copy(reader, far[1]), _copy(far[0], writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def _send(writer: asyncio.StreamWriter, message: Any):
    writer.write(json.dumps(message).encode() + b'\n')


def enable_keepalive(connection: socket.socket) -> None:
    """Makes the kernel drop a connection whose peer is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _SILENCE.items():
        if option := getattr(socket, name, None):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def killed_message(process: int) -> str:
    """The message about a process whose connection broke before it said how it ended."""
    return (
        f'process {process} exited without a message: it was killed, possibly out of memory, or '
        'its host is down. What was saved is safe; the same command resumes from it.'
    )


def _missing_processes_message(address: str, timeout: float, missing: list[int]) -> str:
    names = ', '.join(map(str, missing[:8])) + (', ...' if len(missing) > 8 else '')
    return (
        f'process 0 waited {timeout} seconds at {address} for all processes to connect; '
        f'missing: {names}. Start every one of them, with the same --coordinator; '
        '--coordinator_timeout sets the seconds.'
    )


def _rejection_message(process: int, num_processes: int, expected: int) -> str:
    if num_processes != expected:
        return (
            f'process {process} was started with --num_processes={num_processes}, process 0 with '
            f'--num_processes={expected}. Give every process the same number.'
        )
    return (
        f'--process_id={process} is already in use. Give every process its own id, and every run '
        'its own port.'
    )
