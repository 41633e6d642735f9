"""Threats: online detectors over what a node sees, a trained detector of records, and quarantine of
identities within limits that an operator sets (``novacron threats``, section ``[threats]``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click
from novacron import (
    Channel,
    Identity,
    Node,
    NodeFacts,
    OperationEvent,
    OperationRequest,
    Refusal,
    hookimpl,
)

from novacron_security_threats import hookspecs
from novacron_security_threats._guard import Guard
from novacron_security_threats._settings import SECTION, ThreatsSettings

if TYPE_CHECKING:
    from novacron_security_threats._detector import Detector, Score, train
    from novacron_security_threats._events import Alert, Attempt, Fault, Proof, Reach, Sent
    from novacron_security_threats._records import Table, parse_table, read_table
    from novacron_security_threats._watch import Watch, WatchSettings

NOVACRON_API = 1
NOVACRON_HOOKSPECS = (hookspecs,)
_HOMES: Final = {
    "_detector": ("Detector", "Score", "train"),
    "_events": ("Alert", "Attempt", "Fault", "Proof", "Reach", "Sent"),
    "_records": ("Table", "parse_table", "read_table"),
    "_watch": ("Watch", "WatchSettings"),
}
# The guards of this process's nodes: one, but in tests.
_guards: dict[str, Guard] = {}

__all__ = [
    "NOVACRON_API",
    "NOVACRON_HOOKSPECS",
    "Alert",
    "Attempt",
    "Detector",
    "Fault",
    "Guard",
    "Proof",
    "Reach",
    "Score",
    "Sent",
    "Table",
    "ThreatsSettings",
    "Watch",
    "WatchSettings",
    "parse_table",
    "read_table",
    "train",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"{__name__} has no {name}")


@hookimpl
def novacron_register_settings() -> Mapping[str, type]:
    return {SECTION: ThreatsSettings}


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_security_threats._commands import threats

    return [threats]


@hookimpl
def novacron_on_node_start(node: Node) -> None:
    _guards[str(node.facts.state_dir)] = Guard.of(node)


@hookimpl
def novacron_on_node_stop(node: Node) -> None:
    if (guard := _guards.pop(str(node.facts.state_dir), None)) is not None:
        guard.close()


@hookimpl
def novacron_check_peer(peer: Identity, channel: Channel) -> Refusal | None:
    # The hook does not say of which node it is a peer; a process runs one node.
    for guard in list(_guards.values()):
        if guard.node.name != peer.node and (refusal := guard.peer(peer)) is not None:
            return refusal
    return None


@hookimpl
def novacron_check_operation(request: OperationRequest, node: NodeFacts) -> Refusal | None:
    guard = _guards.get(str(node.state_dir))
    return guard.operation(request) if guard is not None else None


@hookimpl
def novacron_on_operation_event(event: OperationEvent, node: NodeFacts) -> None:
    if (guard := _guards.get(str(node.state_dir))) is not None:
        guard.operation_event(event)
