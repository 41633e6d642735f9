"""The API as a service of the node: uvicorn in the node's own event loop."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from novacron import ConfigError

from novacron_server._host import Host
from novacron_server._settings import ApiSettings
from novacron_server._sockets import listen

if TYPE_CHECKING:
    from novacron_server._app import Shared
    from novacron_server._server import Server

log = logging.getLogger("novacron.api")


class ApiService:
    """Serves the node's API on a unix socket."""

    name: ClassVar[str] = "api"
    Settings: ClassVar[type] = ApiSettings

    def __init__(self, settings: Any, node: Host) -> None:
        self.settings: ApiSettings = settings
        self.node = node
        self.path: Path = settings.path(node.facts.state_dir)
        self._server: Server | None = None
        self._shared: Shared | None = None
        self._inode = 0

    async def start(self) -> None:
        """Listen; returns when requests are answered.

        Raises: ConfigError or Conflict if the socket cannot be had.
        """
        if min(self.settings.heartbeat_s, self.settings.stall_s, self.settings.stop_s) <= 0:
            raise ConfigError("[service.api] heartbeat_s, stall_s and stop_s must be above 0")
        # The command line loads this plugin too, and has no use for a web framework.
        from novacron_server._app import Shared, make_app
        from novacron_server._server import Server

        self._shared = Shared(self.node, self.settings)
        app = make_app(self._shared)
        sock = await asyncio.to_thread(listen, self.path)
        self._inode = self.path.stat().st_ino
        self._server = Server(app, sock, self.settings)
        await self._server.start()
        log.info("the API listens at %s", self.path)

    async def stop(self) -> None:
        """End streams, let requests under way finish for a moment, and remove the socket."""
        server, self._server = self._server, None
        if server is None or self._shared is None:
            return
        self._shared.closing.set()
        await server.stop()
        try:
            # Another node may have replaced the socket; it is not ours to remove then.
            if self.path.stat().st_ino == self._inode:
                os.unlink(self.path)
        except FileNotFoundError:
            pass
