"""Transport: ordered streams of bytes between nodes. They carry only what security has sealed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from novacron_dwcp import Buffer

from novacron.hookspecs.node import NodeFacts
from novacron.markers import hookspec


class Stream(Protocol):
    """An ordered stream of bytes, both ways. Blocking; one thread sends while another receives."""

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send all of the buffers, one after the other; blocks while the peer does not read.

        Raises: TransportError. All, some or nothing may have arrived; the stream is of no more use.
        """
        ...

    def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes and store at most ``len(buffer)`` of them.

        Returns: how many; 0 only when the peer has finished sending.
        Raises: TransportError if the stream broke.
        """
        ...

    def finish(self) -> None:
        """Say that nothing more will be sent; receiving goes on. Twice is once."""
        ...

    def close(self) -> None:
        """Release the stream, from any thread; calls that block in it raise TransportError.

        Never raises; twice is once.
        """
        ...

    @property
    def peer_address(self) -> str: ...


class Listener(Protocol):
    """Where other nodes connect to."""

    @property
    def address(self) -> str:
        """Where it really listens (with the port that the system chose)."""
        ...

    def accept(self) -> Stream:
        """Wait for the next stream. Raises TransportError once closed."""
        ...

    def close(self) -> None:
        """Stop listening; an `accept` under way raises TransportError. Twice is once."""
        ...


class Transport(Protocol):
    """A transport provider."""

    name: ClassVar[str]
    Settings: ClassVar[type]

    def __init__(self, settings: Any, node: NodeFacts) -> None: ...

    def connect(self, address: str, timeout_s: float) -> Stream:
        """Reach a listener. Raises TransportError, naming the address, within the timeout."""
        ...

    def listen(self, address: str) -> Listener:
        """Listen. Raises TransportError if the address cannot be had, ConfigError if it is none."""
        ...


@hookspec
def novacron_register_transport() -> Sequence[type[Transport]]:  # type: ignore[empty-body]
    """Offer transports: ways to carry a stream of bytes from node to node.

    When: once, when the plugins are loaded; a provider is made when the node starts.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: the provider classes, each with a ``name``.
    On error: the plugin is reported as failed and none of its hooks is used.
    Runs on: the loading thread; must not block.
    """
