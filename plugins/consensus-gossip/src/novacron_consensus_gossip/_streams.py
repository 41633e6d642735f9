"""Messages over TCP: each one sealed, behind its length, in connections that are soon closed.

What is waiting for a peer and how many connections there are is bounded; what exceeds it is lost
and counted, as a datagram is. The protocol above is made for that.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from novacron_agreement.control import close_writer

from novacron_consensus_gossip._seal import SEAL_BYTES
from novacron_consensus_gossip._wire import STREAM_BYTES_MAX

FRAME_BYTES_MAX: Final = STREAM_BYTES_MAX + SEAL_BYTES
LENGTH_BYTES: Final = 4
INCOMING_MAX: Final = 64
OUTGOING_MAX: Final = 64
WAITING_BYTES_MAX: Final = 8 << 20
FRAMES_MAX: Final = 256
CONNECT_S: Final = 3.0
FRAME_S: Final = 20.0


class Streams:
    """Both directions.

    Args:
        opened: Called with each sealed message that arrived; returns whether it was sound.
        seal: Called for each message just before it leaves.
        split: A host and a port out of an address; None if it is none.
    """

    def __init__(
        self,
        opened: Callable[[bytes], bool],
        seal: Callable[[bytes], bytes],
        split: Callable[[str], tuple[str, int] | None],
        counts: Counter[str],
    ) -> None:
        self._opened = opened
        self._seal = seal
        self._split = split
        self._counts = counts
        self._server: asyncio.Server | None = None
        self._incoming: set[asyncio.Task[None]] = set()
        self._outgoing: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, deque[bytes]] = {}

    async def listen(self, sock: socket.socket) -> None:
        self._server = await asyncio.start_server(self._serve, sock=sock, limit=1 << 16)

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await asyncio.sleep(0)  # who was accepted in this moment gets a task, to be ended
        tasks = [*self._incoming, *self._outgoing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if server is not None:
            await server.wait_closed()

    # Incoming.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._incoming) >= INCOMING_MAX:
            self._counts["connections-refused"] += 1
            await close_writer(writer)
            return
        self._incoming.add(task)
        try:
            for _ in range(FRAMES_MAX):
                async with asyncio.timeout(FRAME_S):
                    length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
                    if not SEAL_BYTES <= length <= FRAME_BYTES_MAX:
                        self._counts["frames-refused"] += 1
                        return
                    frame = await reader.readexactly(length)
                if not self._opened(frame):
                    return  # it has no key of ours: it gets no second try on this connection
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            pass  # the end, in one of its forms
        finally:
            await close_writer(writer)
            self._incoming.discard(task)

    # Outgoing.

    def send(self, address: str, message: bytes) -> None:
        """Give it to an address some time soon, or lose it."""
        waiting = self._waiting.get(address)
        if waiting is None:
            if len(self._outgoing) >= OUTGOING_MAX:
                self._counts["streams-dropped"] += 1
                return
            waiting = self._waiting[address] = deque()
            task = asyncio.ensure_future(self._deliver(address, waiting))
            self._outgoing[address] = task
        if sum(map(len, waiting)) + len(message) > WAITING_BYTES_MAX:
            self._counts["streams-dropped"] += 1
            return
        waiting.append(message)

    async def _deliver(self, address: str, waiting: deque[bytes]) -> None:
        try:
            target = self._split(address)
            if target is None:
                self._counts["addresses-refused"] += 1
                return
            async with asyncio.timeout(CONNECT_S):
                _, writer = await asyncio.open_connection(*target)
            try:
                while waiting:
                    frame = self._seal(waiting.popleft())
                    writer.write(len(frame).to_bytes(LENGTH_BYTES, "big"))
                    writer.write(frame)
                    async with asyncio.timeout(FRAME_S):
                        await writer.drain()
            finally:
                await close_writer(writer)
        except (OSError, TimeoutError):
            self._counts["streams-failed"] += 1
        finally:
            del self._waiting[address], self._outgoing[address]
