"""Transport ``amst``: several TCP streams per link, measured, paced and steered while they run."""

from __future__ import annotations

from collections.abc import Sequence

from novacron import Transport, hookimpl

from novacron_transport_amst._count import Limits
from novacron_transport_amst._provider import AmstTransport, Settings
from novacron_transport_amst._shares import Shares
from novacron_transport_amst._steering import Pilot

NOVACRON_API = 1

__all__ = [
    "NOVACRON_API",
    "AmstTransport",
    "Limits",
    "Pilot",
    "Settings",
    "Shares",
    "novacron_register_transport",
]


@hookimpl
def novacron_register_transport() -> Sequence[type[Transport]]:
    return (AmstTransport,)
