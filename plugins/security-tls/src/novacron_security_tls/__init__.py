"""Security ``tls``: TLS 1.3 between nodes whose certificates come from one authority of yours.

Key exchange is X25519MLKEM768 and nothing else. There is no plaintext mode and no fallback.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from novacron import hookimpl

if TYPE_CHECKING:
    import click
    from novacron import Finding, Security, Service

    from novacron_security_tls._algorithms import ALGORITHMS
    from novacron_security_tls._authority import Authority, Issued
    from novacron_security_tls._enrolment import Trust, TrustFolder, join, request
    from novacron_security_tls._provider import Settings, TlsSecurity
    from novacron_security_tls._tls import TlsStream

NOVACRON_API = 1

# Where each public name lives. The names are looked up when used: this module is loaded by every
# `novacron` command, and cryptography would make each of them slow.
_HOMES = {
    "ALGORITHMS": "_algorithms",
    "Authority": "_authority",
    "Issued": "_authority",
    "Settings": "_provider",
    "TlsSecurity": "_provider",
    "TlsStream": "_tls",
    "Trust": "_enrolment",
    "TrustFolder": "_enrolment",
    "join": "_enrolment",
    "request": "_enrolment",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


@hookimpl
def novacron_register_security() -> Sequence[type[Security]]:
    from novacron_security_tls._provider import TlsSecurity

    return (TlsSecurity,)


@hookimpl
def novacron_register_service() -> Sequence[type[Service]]:
    from novacron_security_tls._door import AuthorityService
    from novacron_security_tls._service import TrustService

    return (TrustService, AuthorityService)


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_security_tls._commands import trust

    return (trust,)


@hookimpl
def novacron_register_findings() -> Sequence[Finding]:
    from novacron_security_tls._findings import findings

    return tuple(findings())


__all__ = [
    "ALGORITHMS",
    "NOVACRON_API",
    "Authority",
    "Issued",
    "Settings",
    "TlsSecurity",
    "TlsStream",
    "Trust",
    "TrustFolder",
    "join",
    "novacron_register_commands",
    "novacron_register_findings",
    "novacron_register_security",
    "novacron_register_service",
    "request",
]
