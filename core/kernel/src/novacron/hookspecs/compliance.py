"""Compliance: who may change what, and the record of what was changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from attrs import field, frozen

from novacron.errors import Refusal
from novacron.hookspecs.machine import MachineSpec, Obstacle
from novacron.hookspecs.move import MoveEstimate
from novacron.hookspecs.node import NodeFacts
from novacron.markers import hookspec


@frozen(kw_only=True)
class OperationRequest:
    """A change of the world that somebody asks for.

    Attributes:
        kind: ``create``, ``start``, ``stop``, ``pause``, ``resume``, ``delete``, ``migrate``, …
        machine: The machine's name.
        subject: Who asks (a local user, a node).
        parameters: What else was asked, JSON-like.
    """

    kind: str
    machine: str
    subject: str
    parameters: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class MigrationPlan:
    """What a move would do, known before a byte leaves.

    Attributes:
        machine: What would move.
        source, target: Node names.
        mode: ``datacenter``, ``hybrid`` or ``internet``.
        providers: The provider that would answer in each domain.
        max_downtime_ms: The pause to aim at.
        rate_bytes_per_s: The limit, None for none.
        estimate: What it would cost, as far as anybody can say.
        round_trip_ms: Measured to the target; None if it was not reached.
        target_codecs: The compression providers that the target has.
        storage: What becomes of the disks, see `MoveWish`.
        obstacles: All that stands in the way; a move is refused if one of them blocks. Those that
            `novacron_check_migration` raises come last, as it is asked with what was found before.
    """

    machine: MachineSpec
    source: str
    target: str
    mode: str
    providers: Mapping[str, str]
    max_downtime_ms: int
    rate_bytes_per_s: int | None
    estimate: MoveEstimate
    round_trip_ms: float | None
    target_codecs: Sequence[str] = ()
    storage: str = ""
    obstacles: Sequence[Obstacle] = ()

    @property
    def blocked(self) -> bool:
        return any(obstacle.blocks for obstacle in self.obstacles)


@frozen(kw_only=True)
class LogEntry:
    """One entry of the operation log.

    Attributes:
        sequence: From 1, without gaps.
        time: UTC, ISO 8601.
        node: Where it happened.
        operation: The operation's id.
        event: ``requested``, ``refused``, ``succeeded``, ``failed``, ``cancelled``.
        detail: JSON-like facts.
        previous: The digest of the entry before, 64 zeros for the first.
        digest: BLAKE3, hex, over all the above.
    """

    sequence: int
    time: str
    node: str
    operation: str
    event: str
    detail: Mapping[str, Any]
    previous: str
    digest: str


class OperationLog(Protocol):
    """A compliance provider: an append-only, hash-chained record of operations."""

    name: ClassVar[str]
    Settings: ClassVar[type]

    def __init__(self, settings: Any, node: NodeFacts) -> None: ...

    async def append(self, operation: str, event: str, detail: Mapping[str, Any]) -> LogEntry:
        """Add an entry, durable when it returns. Raises OSError if it could not be written;
        nothing was added then, and an operation that must be recorded is refused."""
        ...

    def entries(self, *, after: int = 0) -> Iterator[LogEntry]:
        """The entries with a higher sequence, in order, as they are on disk."""
        ...

    def verify(self) -> int:
        """Check the whole chain; the number of entries. Raises Refused, naming the first entry
        that is missing, changed or out of order."""
        ...

    async def close(self) -> None: ...


@hookspec
def novacron_register_compliance() -> Sequence[type[OperationLog]]:  # type: ignore[empty-body]
    """Offer operation logs.

    When: once, when the plugins are loaded; a provider is made when the node starts.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: the provider classes, each with a ``name``.
    On error: the plugin is reported as failed and none of its hooks is used.
    Runs on: the loading thread; must not block.
    """


@hookspec
def novacron_check_operation(request: OperationRequest, node: NodeFacts) -> Refusal | None:
    """Refuse a change of the world that must not happen.

    When: once per operation, before anything is changed.
    Plugins asked: all of them, in no promised order.
    Return: None to raise no objection, or a Refusal whose reason an operator can act on.
    On error: an exception counts as a refusal and names the plugin.
    Runs on: the event loop; must not block.
    """


@hookspec
def novacron_check_migration(plan: MigrationPlan, node: NodeFacts) -> Refusal | None:
    """Refuse a migration that must not happen.

    When: once per plan, after placement and before any byte leaves the source.
    Plugins asked: all of them, in no promised order.
    Return: None to raise no objection, or a Refusal whose reason an operator can act on.
    On error: an exception counts as a refusal and names the plugin.
    Runs on: the event loop; must not block.
    """
