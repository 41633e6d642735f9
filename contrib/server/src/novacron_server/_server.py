"""uvicorn's protocols on a socket that is ours, in a loop that is the node's.

`uvicorn.Server.serve` would take the process's signals and poll; only its protocols are used here.
They learn who the peer is, and cut off a peer that does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from novacron_server._settings import ApiSettings
from novacron_server._sockets import BACKLOG, peer_subject

KEEP_ALIVE_S: Final = 30
HEADER_BYTES_MAX: Final = 64 << 10
WEBSOCKET_BYTES_MAX: Final = 1 << 20
CONNECTIONS_MAX: Final = 512


class _Guarded:
    """Mixed into a protocol: the peer's name, and an end to a peer that stops reading."""

    transport: Any
    config: Any
    client: Any
    _stalled: asyncio.TimerHandle | None = None

    def _meet(self, transport: Any) -> None:
        self.client = peer_subject(transport.get_extra_info("socket"))

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]
        loop = asyncio.get_running_loop()
        # close() would wait for the very bytes that the peer does not read.
        self._stalled = loop.call_later(self.config.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]
        self._unstall()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unstall()
        super().connection_lost(exc)  # type: ignore[misc]
        self.config.lost.set()

    def _unstall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


class HttpProtocol(_Guarded, H11Protocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._meet(transport)


class WebSocketProtocol(_Guarded, WebSocketsSansIOProtocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._meet(transport)


class _Config(uvicorn.Config):
    """What the protocols find at hand; `lost` is set whenever a connection has ended."""

    stall_s: float
    lost: asyncio.Event


class Server:
    """Answers requests on a listening socket until it is stopped."""

    def __init__(self, app: Any, sock: socket.socket, settings: ApiSettings) -> None:
        self._sock = sock
        self._stop_s = settings.stop_s
        self._state = ServerState()
        self._config = _Config(
            app,
            http=HttpProtocol,
            ws=WebSocketProtocol,
            ws_max_size=WEBSOCKET_BYTES_MAX,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            # A header that anybody can write must not say who asks.
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=HEADER_BYTES_MAX,
        )
        self._config.stall_s = settings.stall_s
        self._config.lost = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._config.load()
        loop = asyncio.get_running_loop()

        def make() -> HttpProtocol:
            return HttpProtocol(
                config=self._config, server_state=self._state, app_state={}, _loop=loop
            )

        self._server = await loop.create_unix_server(make, sock=self._sock, backlog=BACKLOG)

    async def stop(self) -> None:
        """No new connections; those that are there end by themselves, or after a moment."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._stop_s):
                while self._state.connections:
                    self._config.lost.clear()
                    await self._config.lost.wait()
                await asyncio.gather(*self._state.tasks, return_exceptions=True)
        for connection in list(self._state.connections):
            connection.transport.abort()
        for task in list(self._state.tasks):
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        await self._server.wait_closed()
