"""Security ``tls``: TLS 1.3 between nodes whose certificates come from one authority of yours.

Key exchange is X25519MLKEM768 and nothing else. There is no plaintext mode and no fallback.
"""

from __future__ import annotations

from collections.abc import Sequence

import click
from novacron import Security, hookimpl

from novacron_security_tls._authority import ALGORITHMS, Authority, Issued
from novacron_security_tls._commands import trust
from novacron_security_tls._enrolment import Trust, TrustFolder, join, request
from novacron_security_tls._tls import Settings, TlsSecurity, TlsStream

NOVACRON_API = 1

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
    "novacron_register_security",
    "request",
]


@hookimpl
def novacron_register_security() -> Sequence[type[Security]]:
    return (TlsSecurity,)


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    return (trust,)
