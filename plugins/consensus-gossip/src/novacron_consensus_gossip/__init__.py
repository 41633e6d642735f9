"""Membership and health of thousands of nodes, and broadcasts to all of them, by gossip.

The service ``gossip`` (`GossipSettings`, the section ``[service.gossip]``) makes a node a member;
`GossipMember` is the same without a node; `GossipCore` is the protocol without I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from novacron import Service, hookimpl

from novacron_consensus_gossip import hookspecs

if TYPE_CHECKING:
    import click

    from novacron_consensus_gossip._core import GossipCore
    from novacron_consensus_gossip._driver import GossipMember, MemberSetup
    from novacron_consensus_gossip._service import GossipService, GossipSettings
    from novacron_consensus_gossip._values import Me, Member, State, Timing

NOVACRON_API = 1
NOVACRON_HOOKSPECS = (hookspecs,)
# Loaded when they are first asked for: the command line has no use for most of it.
_HOMES: Final = {
    "_core": ("GossipCore",),
    "_driver": ("GossipMember", "MemberSetup"),
    "_service": ("GossipService", "GossipSettings"),
    "_values": ("Me", "Member", "State", "Timing"),
}

__all__ = [
    "NOVACRON_API",
    "NOVACRON_HOOKSPECS",
    "GossipCore",
    "GossipMember",
    "GossipService",
    "GossipSettings",
    "Me",
    "Member",
    "MemberSetup",
    "State",
    "Timing",
    "novacron_register_commands",
    "novacron_register_service",
    "novacron_register_simulations",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"novacron_consensus_gossip.{module}"), name)
    raise AttributeError(f"novacron_consensus_gossip has no {name}")


@hookimpl
def novacron_register_service() -> Sequence[type[Service]]:
    from novacron_consensus_gossip._service import GossipService

    return [GossipService]


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_consensus_gossip._commands import commands

    return commands()


@hookimpl(optionalhook=True)
def novacron_register_simulations() -> Mapping[str, str]:
    return {"gossip": "novacron_consensus_gossip._simulation:GOSSIP"}
