"""The section ``[service.api]``."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

SOCKET_NAME = "api.sock"


@frozen(kw_only=True)
class ApiSettings:
    """The section ``[service.api]``.

    Attributes:
        enabled: Serve the API. Without it the node does only what its peers ask.
        socket: The unix socket to listen at; empty for ``api.sock`` in the node's state_dir.
            Only the user that runs the node can connect.
        heartbeat_s: How often a stream of events says that it is alive when nothing happens.
        stall_s: How long a client may leave an answer unread before its connection is cut.
        max_streams: Streams of events and consoles that may be open at once.
        max_body_bytes: The largest request body that is taken.
        stop_s: How long requests under way may take to end when the node stops.
    """

    enabled: bool = True
    socket: str = ""
    heartbeat_s: float = 15.0
    stall_s: float = 30.0
    max_streams: int = 64
    max_body_bytes: int = 1 << 20
    stop_s: float = 3.0

    def path(self, state_dir: Path) -> Path:
        """Where the API listens."""
        return Path(self.socket).expanduser() if self.socket else state_dir / SOCKET_NAME
