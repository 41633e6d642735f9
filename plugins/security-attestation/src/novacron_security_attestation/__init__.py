"""Attested hosts: AMD SEV-SNP reports and Intel TDX quotes verified, and machines kept to hosts
that they vouch for (``novacron attestation``, section ``[attestation]``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from novacron import (
    Channel,
    Finding,
    Identity,
    MigrationPlan,
    Node,
    NodeFacts,
    Refusal,
    hookimpl,
)

from novacron_security_attestation._policy import SECTION, AttestationSettings

if TYPE_CHECKING:
    from novacron_security_attestation._collateral import Collateral, gather, read_collateral
    from novacron_security_attestation._reasons import Reason
    from novacron_security_attestation._verify import Verdict, verify

NOVACRON_API = 1
_HOMES = {
    "_collateral": ("Collateral", "gather", "read_collateral"),
    "_reasons": ("Reason",),
    "_verify": ("Verdict", "verify"),
}
# The nodes of this process: one, but in tests.
_nodes: dict[str, NodeFacts] = {}

__all__ = [
    "NOVACRON_API",
    "AttestationSettings",
    "Collateral",
    "Reason",
    "Verdict",
    "gather",
    "read_collateral",
    "verify",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"{__name__} has no {name}")


@hookimpl
def novacron_register_settings() -> Mapping[str, type]:
    return {SECTION: AttestationSettings}


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_security_attestation._commands import attestation

    return [attestation]


@hookimpl
def novacron_register_findings() -> Sequence[Finding]:
    from novacron_security_attestation._findings import findings

    return list(findings())


@hookimpl
def novacron_on_node_start(node: Node) -> None:
    _nodes[str(node.facts.state_dir)] = node.facts


@hookimpl
def novacron_on_node_stop(node: Node) -> None:
    _nodes.pop(str(node.facts.state_dir), None)


@hookimpl
def novacron_check_migration(plan: MigrationPlan, node: NodeFacts) -> Refusal | None:
    from novacron_security_attestation._hooks import migration, settings_of

    settings = settings_of(node)
    if not (settings.machines or settings.tenants):
        return None
    return migration(plan, node)


@hookimpl
def novacron_check_peer(peer: Identity, channel: Channel) -> Refusal | None:
    from novacron_security_attestation._hooks import Guard

    return Guard(_nodes).peer(peer)
