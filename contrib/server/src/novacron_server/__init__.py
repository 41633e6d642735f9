"""The API of a node, as a service that the node hosts; its client; and the commands that use it.

``[service.api]`` holds its settings (`ApiSettings`). HTTP/JSON on a unix socket, described by the
node itself at ``/schema/openapi.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from novacron import Service, hookimpl

from novacron_server._client import Client
from novacron_server._service import ApiService
from novacron_server._settings import ApiSettings

if TYPE_CHECKING:
    import click

__all__ = ["NOVACRON_API", "ApiService", "ApiSettings", "Client"]
NOVACRON_API = 1


@hookimpl
def novacron_register_service() -> Sequence[type[Service]]:
    return [ApiService]


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_server._commands import commands

    return commands()
