"""The API of a node, as a service that the node hosts; its client; and the commands that use it.

``[service.api]`` holds its settings (`ApiSettings`). HTTP/JSON on a unix socket, described by the
node itself at ``/schema/openapi.json``.
"""

from __future__ import annotations

from novacron_server._service import ApiService
from novacron_server._settings import ApiSettings

__all__ = ["NOVACRON_API", "ApiService", "ApiSettings"]
NOVACRON_API = 1
