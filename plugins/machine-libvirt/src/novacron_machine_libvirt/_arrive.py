"""A machine that arrives: batches, written to QEMU as the stream that its source's QEMU sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Final

from novacron import Batch, MachineError, PeerProtocolError
from novacron_qemu.stream import StreamJoiner, StreamRefused

from novacron_machine_libvirt import _libvirt as libvirt
from novacron_machine_libvirt import _phases
from novacron_machine_libvirt._daemon import Daemon, refused, words
from novacron_machine_libvirt._home import Home

_CONNECT_TIMEOUT_S: Final = 10.0
# While QEMU loads one batch the next may be unpacked; the system's own size is a fifth of one.
_BUFFER_BYTES: Final = 2 << 20


class Arriving:
    """The destination's half of a move (`novacron.Incoming`).

    It has a connection of its own: libvirtd undoes an arrival whose connection closes before it was
    finished, so a node that dies leaves nothing behind.
    """

    def __init__(
        self,
        name: str,
        daemon: Daemon,
        home: Home,
        load_timeout_s: float,
        arrived: Callable[[], Awaitable[None]],
        abandon: Callable[[], Awaitable[None]],
    ) -> None:
        self._name = name
        self._daemon = daemon
        self._home = home
        self._load_timeout_s = load_timeout_s
        self._arrived = arrived
        self._abandon = abandon
        self._joiner = StreamJoiner()
        self._connection: libvirt.Connection | None = None
        self._peer: _phases.Peer | None = None
        self._socket: socket.socket | None = None
        self._writing = threading.Lock()
        self._over = False

    async def begin(self, peer: _phases.Peer, xml: str, timeout_s: float) -> None:
        """Let libvirtd make the domain, and connect to it. Raises MachineError; nothing is left."""
        path = self._home.socket("in.sock")
        path.unlink(missing_ok=True)
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        what = f"machine {self._name} cannot arrive"
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.to_thread(self._prepare, peer, xml, f"unix://{path}")
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                stream.setblocking(False)
                await asyncio.get_running_loop().sock_connect(stream, str(path))
            stream.setblocking(True)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        except BaseException as error:
            stream.close()
            self._connection = None  # libvirtd removes what it has made
            if isinstance(error, libvirt.LibvirtError):
                raise refused(what, error) from error
            if isinstance(error, OSError):  # a timeout is one too
                reason = str(error) or "libvirtd took too long"
                raise MachineError(f"{what}: {reason}", hint="see its log") from error
            raise
        finally:
            path.unlink(missing_ok=True)
        self._socket = stream

    def _prepare(self, peer: _phases.Peer, xml: str, uri: str) -> None:
        connection = self._daemon.new()
        _phases.prepare(connection, peer, xml, uri)
        self._connection, self._peer = connection, peer

    def write(self, batch: Batch) -> None:
        """See `novacron.Incoming.write`."""
        with self._writing:
            stream = self._socket
            if stream is None or self._over:
                raise MachineError(f"machine {self._name}: its arrival is over")
            try:
                joined = self._joiner.join(batch)
            except StreamRefused as error:
                raise PeerProtocolError(
                    str(error),
                    hint="both nodes need the same version of novacron-qemu",
                    problem=error.problem,
                    at=error.at,
                ) from error
            try:
                stream.sendall(joined)
            except OSError as error:
                raise self._refused(f"QEMU does not take its stream ({error})") from error

    def _refused(self, what: str) -> MachineError:
        return MachineError(
            f"machine {self._name} cannot be loaded: {what}",
            hint="see the domain's log in /var/log/libvirt/qemu (in a session: "
            "~/.cache/libvirt/qemu/log)",
        )

    async def finish(self) -> None:
        """See `novacron.Incoming.finish`."""
        if self._over or self._socket is None or self._connection is None:
            raise MachineError(f"machine {self._name}: its arrival is over")
        connection, peer = self._connection, self._peer
        assert peer is not None
        try:
            async with asyncio.timeout(self._load_timeout_s):
                await asyncio.to_thread(self._finish_writing)
                await asyncio.to_thread(_phases.finish, connection, peer)
        except libvirt.LibvirtError as error:
            raise self._refused(words(error)) from error
        except TimeoutError:
            raise self._refused(f"not ready after {self._load_timeout_s:g} s") from None
        await self._arrived()
        self._close()

    def _finish_writing(self) -> None:
        with self._writing:
            stream = self._socket
            if stream is not None:
                with contextlib.suppress(OSError):  # QEMU read all it needs and closed
                    stream.shutdown(socket.SHUT_WR)

    async def abandon(self) -> None:
        """See `novacron.Incoming.abandon`."""
        if self._over:
            return
        await self._abandon()
        self._over = True
        stream = self._socket
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        await asyncio.to_thread(self._close_when_unwritten)

    def close(self) -> None:
        """The machine was stopped: there is nothing to arrive at any more."""
        self._over = True
        self._close()

    def __del__(self) -> None:
        self._close()

    def _close_when_unwritten(self) -> None:
        with self._writing:
            self._close()

    def _close(self) -> None:
        self._connection = None
        stream, self._socket = self._socket, None
        if stream is not None:
            stream.close()
