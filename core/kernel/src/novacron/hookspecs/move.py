"""Moves: what is foreseen of them, how they share a link, and which providers they go through.

None of these need answer: without a plugin, a move is estimated by the kernel's own rule of thumb,
shares a link as its transport does, and goes through what the configuration chose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from attrs import frozen

from novacron.hookspecs.machine import MachineSpec
from novacron.hookspecs.node import NodeFacts
from novacron.markers import hookspec

if TYPE_CHECKING:
    from novacron.node import Node
    from novacron.operations import Operation

# A low and a high bound, and between them what is as likely to be too little as too much.
Interval = tuple[float, float, float]


@frozen(kw_only=True)
class MoveFacts:
    """What is known of one move at the source, before it or while it runs.

    Attributes:
        machine: What moves.
        target, mode, codec: Where to, in which mode, through which compression provider.
        session: The session's name; empty before there is one.
        used_bytes: Of the machine's memory (and of its disks, where they go along).
        done_bytes, remaining_bytes: Of machine state, as `CopyProgress` has them.
        dirty_bytes_per_s: How fast the guest writes, 0 while unknown.
        raw_bytes: Machine state that the encoder was given.
        wire_bytes: What went over the link for it.
        elapsed_s: Since the copy began.
        round_trip_ms: To the target.
        rate_bytes_per_s: On the wire: now, while the move runs; before it, what the last one
            reached. None if unknown.
        limit_bytes_per_s: The most that may be sent, None for no limit.
    """

    machine: MachineSpec
    target: str
    mode: str
    codec: str
    session: str = ""
    used_bytes: int = 0
    done_bytes: int = 0
    remaining_bytes: int = 0
    dirty_bytes_per_s: int = 0
    raw_bytes: int = 0
    wire_bytes: int = 0
    elapsed_s: float = 0.0
    round_trip_ms: float | None = None
    rate_bytes_per_s: float | None = None
    limit_bytes_per_s: int | None = None


@frozen(kw_only=True)
class MoveEstimate:
    """What is foreseen: low bound, median and high bound of each, None where nothing can be said.

    Attributes:
        bytes: On the wire, from the beginning to the end of the move.
        seconds: From now to the end.
        pause_ms: What the guest will feel.
        confidence: How often the truth lies between the bounds; 0 where nobody measured it.
        reason: What it comes from.
    """

    bytes: Interval | None = None
    seconds: Interval | None = None
    pause_ms: Interval | None = None
    confidence: float = 0.0
    reason: str = ""


@frozen(kw_only=True)
class MoveNeed:
    """One of the moves that leave this node now, and what it needs of a link that they share.

    Attributes:
        session, machine, target: Which.
        priority: Higher goes first.
        deadline_s: Left until it should be over, None if nobody said.
        remaining_bytes, dirty_bytes_per_s: Of machine state, before any encoding.
        rate_bytes_per_s: What it has on the wire now.
        limit_bytes_per_s: The most that its operator allows, None for no limit.
    """

    session: str
    machine: str
    target: str
    priority: int
    deadline_s: float | None
    remaining_bytes: int
    dirty_bytes_per_s: int
    rate_bytes_per_s: float
    limit_bytes_per_s: int | None


@frozen(kw_only=True)
class MoveContext:
    """Which move a provider is chosen for."""

    machine: str
    tenant: str
    source: str
    target: str
    mode: str


class OperationKind(Protocol):
    """A change of the world that a plugin adds to those of the kernel.

    Attributes:
        name: What ``OperationRequest.kind`` says.
        Settings: attrs class of the section ``[operation.<name>]``.
        Parameters: attrs class that the request's parameters are checked with.
    """

    name: ClassVar[str]
    Settings: ClassVar[type]
    Parameters: ClassVar[type]

    def __init__(self, settings: Any, node: NodeFacts) -> None: ...

    async def run(self, node: Node, operation: Operation, parameters: Any) -> dict[str, Any]:
        """Do it; the result is the operation's.

        Raises: NovacronError that says what is true now; the operation has failed then.
        """
        ...


@hookspec
def novacron_register_operation() -> Sequence[type[OperationKind]]:  # type: ignore[empty-body]
    """Offer kinds of operation that concern the node and not one machine.

    When: once, when the plugins are loaded; a kind is made when it is first asked for.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: the classes, each with a ``name``. A request names the node as its ``machine``.
    On error: the plugin is reported as failed and none of its hooks is used.
    Runs on: the loading thread; must not block.
    """


@hookspec
def novacron_choose_provider(
    domain: str, chosen: str, available: Sequence[str], move: MoveContext, node: NodeFacts
) -> str | None:
    """Let a move go through another provider than the configuration's.

    When: once per plan, for ``compression``, ``transport`` and ``protocol`` (its version).
    Plugins asked: all of them, in no promised order; the first that answers wins.
    Return: one of ``available`` (what both sides have), or None to leave it as ``chosen``.
    On error: logged with the plugin's name; it counts as None, as does a name not available.
    Runs on: the event loop; must not block.
    """


@hookspec
def novacron_choose_estimate(move: MoveFacts, node: NodeFacts) -> MoveEstimate | None:
    """Foresee bytes, time and pause of a move.

    When: once per plan, and some four times a second while a move runs.
    Plugins asked: all of them, in no promised order; the first that answers wins.
    Return: the estimate, or None if nothing is known yet.
    On error: logged with the plugin's name; it counts as None.
    Runs on: the event loop; must not block.
    """


@hookspec
def novacron_choose_rates(
    moves: Sequence[MoveNeed], node: NodeFacts
) -> Mapping[str, int | None] | None:
    """Share the links among the moves that leave this node.

    When: once a second while there are any.
    Plugins asked: all of them, in no promised order; the first that answers wins.
    Return: bytes per second on the wire by session, None or nothing for no limit of it. No move
        gets more than its operator allows, whatever is answered.
    On error: logged with the plugin's name; it counts as None, and all limits stay as they are.
    Runs on: the event loop; must not block.
    """


@hookspec
def novacron_on_move_sample(move: MoveFacts, node: NodeFacts) -> None:
    """Learn how a move goes.

    When: some four times a second while it runs.
    Plugins asked: all.
    Return: ignored.
    On error: logged with the plugin's name; the move goes on.
    Runs on: the event loop; must not block.
    """


@hookspec
def novacron_on_move_end(
    move: MoveFacts, moved: bool, reason: str, downtime_ms: float, node: NodeFacts
) -> None:
    """Learn how a move ended, at its source.

    When: once per session that began to copy, when its outcome is certain.
    Plugins asked: all.
    Return: ignored. ``reason`` says why the machine did not move.
    On error: logged with the plugin's name.
    Runs on: the event loop; must not block.
    """
