"""An authority with two nodes, and streams between them that are TLS over TCP and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from novacron import Buffer, NodeFacts, NovacronError, ProtocolError, TransportError
from novacron_security_tls import Authority, Settings, TlsSecurity, TlsStream
from OpenSSL import SSL

WAIT_S = 10.0


class SocketStream:
    """A transport's stream, as small as it can be."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = 0
        host, port = sock.getpeername()
        self.peer_address = f"{host}:{port}"

    def send(self, buffers: Sequence[Buffer]) -> None:
        try:
            for buffer in buffers:
                self.sock.sendall(buffer)
        except OSError as error:
            raise TransportError(str(error)) from error

    def receive_into(self, buffer: memoryview) -> int:
        try:
            count = self.sock.recv_into(buffer)
        except OSError as error:
            raise TransportError(str(error)) from error
        self.received += count
        return count

    def finish(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise TransportError(str(error)) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    near.settimeout(WAIT_S)
    return near, far


class Call(threading.Thread):
    """Runs a call in a thread and keeps what became of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.value: Any = None
        self.failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self.call()
        except (NovacronError, ProtocolError, SSL.Error, OSError) as error:
            self.failure = error

    def outcome(self) -> Any:
        self.join(WAIT_S)
        assert not self.is_alive(), "the call did not end"
        return self.failure if self.failure is not None else self.value


class Site:
    """An authority and two nodes."""

    def __init__(self, folder: Path, *, algorithm: str = "ecdsa-p256") -> None:
        self.folder = folder
        self.authority = Authority.create(folder / "ca", algorithm=algorithm)
        self.alpha = self.node("alpha", algorithm=algorithm)
        self.beta = self.node("beta", algorithm=algorithm)

    def node(self, name: str, *, algorithm: str = "ecdsa-p256", **more: Any) -> TlsSecurity:
        self.authority.issue(name, self.folder / name, algorithm=algorithm)
        return self.open(name, **more)

    def open(self, name: str, *, timeout_s: float = WAIT_S, **more: Any) -> TlsSecurity:
        node = NodeFacts(name=name, state_dir=self.folder / name)
        return TlsSecurity(Settings(handshake_timeout_s=timeout_s), node, **more)


def shake(client: TlsSecurity, server: TlsSecurity, node: str) -> tuple[Any, Any]:
    """What became of both ends of a handshake."""
    near, far = tcp_pair()
    serving = Call(lambda: server.server(SocketStream(far)))
    calling = Call(lambda: client.client(SocketStream(near), node))
    return calling.outcome(), serving.outcome()


@contextlib.contextmanager
def joined(client: TlsSecurity, server: TlsSecurity) -> Iterator[tuple[TlsStream, TlsStream]]:
    near, far = shake(client, server, server.identity().node)
    assert isinstance(near, TlsStream), near
    assert isinstance(far, TlsStream), far
    try:
        yield near, far
    finally:
        near.close()
        far.close()
