"""The runner's listening sockets: one thread per connection, so many and no more."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from novacron_machine_wasm import _wire as wire

Handler = Callable[[socket.socket], None]

_CREDENTIALS: Final = struct.Struct("3i")
BIND_AGAIN_S: Final = 0.5


class Listener:
    """Accepts connections and gives each to the handler in a thread; the handler may raise
    OSError and WireError to end its connection."""

    def __init__(self, sock: socket.socket, handler: Handler, limit: int) -> None:
        self._sock = sock
        self._handler = handler
        self._room = threading.Semaphore(limit)
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    @classmethod
    def at_path(cls, path: Path, handler: Handler, limit: int) -> Listener:
        """Listen on a unix socket that nobody but this user may use."""
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(128)
        return cls(sock, handler, limit)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._sock.accept()
            except OSError:
                # Too many open files, a peer that was gone at once: go on, but not in a hurry.
                time.sleep(0.05)
                continue
            if not self._may_talk(connection) or not self._room.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _may_talk(self, connection: socket.socket) -> bool:
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return True
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(raw)[1]) in (0, os.geteuid())

    def _serve(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError, wire.WireError):
                self._handler(connection)
        finally:
            connection.close()
            self._room.release()


def listen_tcp(port: int, handler: Handler, limit: int) -> None:
    """Listen on 127.0.0.1 as soon as the port is free: during a move between two nodes of one
    host it still belongs to the other side."""

    def bind() -> None:
        while True:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
                sock.listen(128)
            except OSError:
                sock.close()
                time.sleep(BIND_AGAIN_S)
            else:
                Listener(sock, handler, limit)
                return

    threading.Thread(target=bind, name="bind", daemon=True).start()


class Console:
    """The guest's console: a log file, and whoever is connected, both ways."""

    def __init__(self, log: Path, log_bytes_max: int, input_max: int) -> None:
        self._log = log
        self._log_bytes_max = log_bytes_max
        self._input_max = input_max
        self._clients: set[socket.socket] = set()
        self._lock = threading.Condition()
        self._input = bytearray()
        self.printed_bytes = 0

    def handle(self, connection: socket.socket) -> None:
        with self._lock:
            self._clients.add(connection)
        try:
            while data := connection.recv(1024):
                with self._lock:
                    # A guest that does not read keeps the typist waiting, not the memory growing.
                    while len(self._input) + len(data) > self._input_max:
                        self._lock.wait()
                    self._input += data
        finally:
            with self._lock:
                self._clients.discard(connection)

    def read(self, count: int) -> bytes:
        """What was typed, at most so much."""
        with self._lock:
            data = bytes(self._input[:count])
            if data:
                del self._input[: len(data)]
                self._lock.notify_all()
        return data

    def pending(self) -> bytes:
        with self._lock:
            return bytes(self._input)

    def restore(self, printed_bytes: int, pending: bytes) -> None:
        with self._lock:
            self.printed_bytes = printed_bytes
            self._input[:] = pending

    def write(self, data: bytes) -> None:
        """Log it, and show it to whoever looks and keeps up."""
        self.printed_bytes += len(data)
        # A full disk costs lines of the log, not the machine.
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            handle = os.open(self._log, flags, 0o600)
            try:
                os.write(handle, data)
                if os.fstat(handle).st_size > self._log_bytes_max:
                    self._log.replace(self._log.with_name(f"{self._log.name}.1"))
            finally:
                os.close(handle)
        with self._lock:
            clients = tuple(self._clients)
        for client in clients:
            with contextlib.suppress(OSError):
                client.send(data, socket.MSG_DONTWAIT)
