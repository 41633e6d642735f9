"""The life of a node: what is hosted by it and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from attrs import field, frozen

from novacron.markers import hookspec

if TYPE_CHECKING:
    from novacron.hookspecs.security import SecureStream
    from novacron.node import Node


class Channels(Protocol):
    """Streams to other nodes for a provider's own protocol, on the nodes' one port: secured, and
    the peer's name proved, before the first byte of that protocol."""

    def open(self, peer: str, protocol: str, address: str = "") -> SecureStream:
        """A stream to what the peer serves by that name. Blocks: call it in a thread.

        Args:
            address: Where the peer listens; empty means as ``[peers]`` has it.
        Raises: TransportError (no address is known, nobody answers, or the peer does not serve it),
            Untrusted. Nothing is left open then.
        """
        ...

    def serve(self, protocol: str, handler: Callable[[SecureStream], None]) -> None:
        """Have a handler called for each stream that a peer opens for that protocol.

        Each call runs in a thread of its own, and its stream is closed when it returns; a peer has
        at most 8 of them at a time. A provider calls this when it is made, before the node
        listens. What comes over the stream is the peer's word: bound it.
        Raises: Conflict if it is served already.
        """
        ...


@frozen(kw_only=True)
class NodeFacts:
    """What a provider may know of the node that it works for.

    Attributes:
        name: The node's name.
        state_dir: Its folder for what must survive; a provider keeps its files below
            ``state_dir / "<domain>-<name>"``, which it makes itself, mode 0700.
        settings: The checked settings of every section that plugins registered, by section name
            (``"compliance.local"``), for hooks that are not called on a provider.
        channels: Streams to other nodes; None where no node runs (in a command, in a test).
    """

    name: str
    state_dir: Path
    settings: Mapping[str, Any] = field(factory=dict)
    channels: Channels | None = field(default=None, eq=False, repr=False)


@frozen(kw_only=True)
class OperationEvent:
    """Something that happened to an operation.

    Attributes:
        sequence: From 1 within the operation, without gaps.
        operation: Its id.
        kind: ``phase``, ``progress``, ``message`` or ``state``.
        data: JSON-like.
    """

    sequence: int
    operation: str
    kind: str
    data: Mapping[str, Any]


class Service(Protocol):
    """Something that a node hosts while it runs, such as its API."""

    name: ClassVar[str]
    Settings: ClassVar[type]

    def __init__(self, settings: Any, node: Node) -> None: ...

    async def start(self) -> None:
        """Begin to serve; returns when it does. Raises NovacronError: the node then stops."""
        ...

    async def stop(self) -> None:
        """Stop serving. Twice is once."""
        ...


@hookspec
def novacron_register_service() -> Sequence[type[Service]]:  # type: ignore[empty-body]
    """Offer services that a node hosts, each switched on by its section ``[service.<name>]``.

    When: once, when the plugins are loaded; a service is made when the node starts.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: the service classes, each with a ``name``; ``Settings`` may have an ``enabled``.
    On error: the plugin is reported as failed and none of its hooks is used.
    Runs on: the loading thread; must not block.
    """


@hookspec
def novacron_register_settings() -> Mapping[str, type]:  # type: ignore[empty-body]
    """Offer sections of the configuration that belong to no provider.

    When: once, when the plugins are loaded.
    Plugins asked: all; two that claim the same section are a clash that names both.
    Return: attrs classes by section name (``"policy"`` is ``[policy]`` in the file).
    On error: the plugin is reported as failed and none of its hooks is used.
    Runs on: the loading thread; must not block.
    """


@hookspec
def novacron_on_node_start(node: Node) -> None:
    """Learn that a node is about to serve: its machines are adopted and its sessions recovered.

    When: once in the life of a node process, before its services start.
    Plugins asked: all.
    Return: ignored.
    On error: logged with the plugin's name; the node goes on.
    Runs on: the event loop; must not block.
    """


@hookspec
def novacron_on_node_stop(node: Node) -> None:
    """Learn that a node is about to end. Its machines go on.

    When: once in the life of a node process, after its services have stopped.
    Plugins asked: all.
    Return: ignored.
    On error: logged with the plugin's name; the node goes on.
    Runs on: the event loop; must not block.
    """


@hookspec
def novacron_on_operation_event(event: OperationEvent, node: NodeFacts) -> None:
    """Learn what an operation does: its phases, its progress, its end.

    When: for each event, in order within an operation.
    Plugins asked: all.
    Return: ignored.
    On error: logged with the plugin's name; the operation goes on.
    Runs on: the event loop; must not block.
    """


@hookspec
def novacron_on_session_phase(
    session: str, machine: str, role: str, phase: str, node: NodeFacts
) -> None:
    """Learn that a migration session enters a phase of the hand-over.

    When: on either side, for each phase, before what the phase asks for is done.
    Plugins asked: all.
    Return: ignored. ``role`` is ``source`` or ``destination``; ``docs/protocol.md`` has the phases.
    On error: logged with the plugin's name; the session goes on.
    Runs on: the event loop; must not block.
    """


@hookspec
def novacron_register_profiles() -> Mapping[str, Mapping[str, Any]]:  # type: ignore[empty-body]
    """Offer profiles: named plugin sets with settings, for ``[node] profile``.

    When: once, when the configuration is read.
    Plugins asked: all; a profile of the same name in the file wins.
    Return: tables as a ``[profiles.<name>]`` section holds them, by name. The profile called
        ``standard`` is in use where no other is named.
    On error: the configuration is refused and the plugin named.
    Runs on: the main thread; must not block.
    """
