"""How commands reach what runs in a node's process: a unix socket for the node's own user.

A client connects, writes a line, and reads lines until the connection ends. Whoever may open the
socket may ask: it has mode 0600 and belongs in a folder of mode 0700.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

CLIENTS_MAX: Final = 64
CLOSE_S: Final = 2.0
_PATH_BYTES_MAX: Final = 107  # sun_path, without the ending zero
T = TypeVar("T")


class Asker:
    """A client that has asked something."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def tell(self, line: bytes) -> None:
        """Raises OSError if the client is gone."""
        self._writer.write(line + b"\n")
        await self._writer.drain()

    async def until_it_goes(self, news: asyncio.Queue[T]) -> AsyncGenerator[T, None]:
        """What comes by the queue, until the client hangs up."""
        gone = asyncio.ensure_future(self._reader.read(1))
        try:
            while not gone.done():
                next_one = asyncio.ensure_future(news.get())
                await asyncio.wait((gone, next_one), return_when=asyncio.FIRST_COMPLETED)
                if not next_one.done():
                    next_one.cancel()
                    break
                yield next_one.result()
        finally:
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone


class ControlSocket:
    """See the module.

    Args:
        path: Of the socket; its folder exists.
        answer: Gets each line, without its end, and who asked. An OSError or a ValueError of it
            ends the connection.
        request_bytes_max: A longer line is not read.
        clients_max: How many may ask at once; others find the connection closed.
    """

    def __init__(
        self,
        path: Path,
        answer: Callable[[bytes, Asker], Awaitable[None]],
        *,
        request_bytes_max: int,
        clients_max: int = CLIENTS_MAX,
    ) -> None:
        self.path = path
        self._answer = answer
        self._request_bytes_max = request_bytes_max
        self._clients_max = clients_max
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises OSError."""
        # Whoever listened here before held the node's lock, which this node has now.
        self.path.unlink(missing_ok=True)
        with reachable(self.path) as name:
            self._server = await asyncio.start_unix_server(
                self._serve, name, limit=self._request_bytes_max
            )
        self.path.chmod(0o600)

    async def stop(self) -> None:
        """Listen no more, and end what is being answered. Twice is once."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await server.wait_closed()
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._clients) < self._clients_max:
                self._clients.add(task)
                line = (await reader.readline()).strip()
                await self._answer(line, Asker(reader, writer))
        except (OSError, ValueError, asyncio.CancelledError):
            pass  # the client went away, asked nonsense at length, or the node stops
        finally:
            await close_writer(writer)
            self._clients.discard(task)


async def close_writer(writer: asyncio.StreamWriter) -> None:
    """Close a connection after what was written has left; not at any price."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()
    writer.transport.abort()


def ask(path: Path, line: bytes, timeout_s: float | None) -> Iterator[bytes]:
    """Ask whoever serves a socket: the lines of its answer. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(timeout_s)
        with reachable(path) as name:
            connection.connect(name)
        connection.sendall(line + b"\n")
        with connection.makefile("rb") as lines:
            yield from lines


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A name for a path that a socket's address can hold, however deep it is."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
