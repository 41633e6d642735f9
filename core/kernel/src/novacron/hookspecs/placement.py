"""Placement: which node a machine should move to, when the operator does not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from attrs import field, frozen

from novacron.hookspecs.machine import MachineSpec
from novacron.hookspecs.node import NodeFacts
from novacron.markers import hookspec


@frozen(kw_only=True)
class NodeReport:
    """What a node said of itself, and what was measured on the way to it.

    Attributes:
        node: Its name.
        free_memory_bytes: What the system could still give to machines.
        drivers: The machine drivers that it has.
        codecs: The compression providers that it has.
        protocol: The newest version of the protocol that it and this node speak; 0 if unknown.
        round_trip_ms: Measured to it, over the secured link.
        rate_bytes_per_s: Measured to it by the last moves or a probe; None if never.
    """

    node: str
    free_memory_bytes: int
    drivers: Sequence[str]
    round_trip_ms: float
    rate_bytes_per_s: float | None = None
    codecs: Sequence[str] = ()
    protocol: int = 0


@frozen(kw_only=True)
class Choice:
    """The node that was chosen, why, and why not the others (a reason per node)."""

    node: str
    reason: str
    rejected: dict[str, str] = field(factory=dict)


class Placement(Protocol):
    """A placement provider."""

    name: ClassVar[str]
    Settings: ClassVar[type]

    def __init__(self, settings: Any, node: NodeFacts) -> None: ...

    def choose(self, machine: MachineSpec, candidates: Sequence[NodeReport]) -> Choice:
        """The best of the candidates, the same for the same input, whatever their order.

        Raises: Refused, with a reason per candidate, if none will do.
        """
        ...


@hookspec
def novacron_register_placement() -> Sequence[type[Placement]]:  # type: ignore[empty-body]
    """Offer ways to choose the target of a move.

    When: once, when the plugins are loaded; a provider is made when the node starts.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: the provider classes, each with a ``name``.
    On error: the plugin is reported as failed and none of its hooks is used.
    Runs on: the loading thread; must not block.
    """
