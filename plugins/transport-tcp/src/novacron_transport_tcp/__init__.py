"""Transport ``tcp``: one TCP connection per stream, blocking, with options set per socket."""

from __future__ import annotations

from collections.abc import Sequence

from novacron import Transport, hookimpl

from novacron_transport_tcp._tcp import Settings, TcpTransport, parse_address

NOVACRON_API = 1

__all__ = [
    "NOVACRON_API",
    "Settings",
    "TcpTransport",
    "novacron_register_transport",
    "parse_address",
]


@hookimpl
def novacron_register_transport() -> Sequence[type[Transport]]:
    return (TcpTransport,)
