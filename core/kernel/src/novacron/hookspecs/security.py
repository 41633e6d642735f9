"""Security: turns a transport's stream into one that is encrypted and whose peer is known.

There is no plaintext provider: a node without a security provider speaks to nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from attrs import frozen

from novacron.errors import Refusal
from novacron.hookspecs.node import NodeFacts
from novacron.hookspecs.transport import Stream
from novacron.markers import hookspec


@frozen(kw_only=True)
class Identity:
    """Who a node is.

    Attributes:
        node: The node's name, as other nodes' ``[peers]`` call it.
        trust_domain: The name of the authority that vouches for it.
        fingerprint: SHA-256 of the certificate, hex.
    """

    node: str
    trust_domain: str
    fingerprint: str


@frozen(kw_only=True)
class Channel:
    """What protects a stream, for the operator's eyes and the operation log."""

    protocol: str
    cipher: str
    key_exchange: str


class SecureStream(Stream, Protocol):
    """A stream whose bytes nobody but ``peer`` can read or change."""

    @property
    def peer(self) -> Identity: ...

    @property
    def channel(self) -> Channel: ...


class Security(Protocol):
    """A security provider. `client` and `server` block in a worker thread for the handshake."""

    name: ClassVar[str]
    Settings: ClassVar[type]

    def __init__(self, settings: Any, node: NodeFacts) -> None: ...

    def identity(self) -> Identity:
        """Who this node is. Raises Untrusted, saying how to enrol, if it has no identity yet."""
        ...

    def client(self, stream: Stream, node: str) -> SecureStream:
        """Protect a stream that we opened, and make sure that ``node`` is at its other end.

        Raises: Untrusted (wrong, unknown, expired or revoked peer, or weaker algorithms than
        required), TransportError; the stream is closed in both cases.
        """
        ...

    def server(self, stream: Stream) -> SecureStream:
        """Protect a stream that a peer opened. Raises as `client` does; the stream is closed."""
        ...


@hookspec
def novacron_register_security() -> Sequence[type[Security]]:  # type: ignore[empty-body]
    """Offer ways to protect the streams between nodes.

    When: once, when the plugins are loaded; a provider is made when the node starts.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: the provider classes, each with a ``name``.
    On error: the plugin is reported as failed and none of its hooks is used.
    Runs on: the loading thread; must not block.
    """


@hookspec
def novacron_check_peer(peer: Identity, channel: Channel) -> Refusal | None:
    """Refuse a peer that has proved who it is but is not wanted.

    When: for every stream, after the handshake and before the first message.
    Plugins asked: all of them, in no promised order.
    Return: None to raise no objection, or a Refusal; the stream is then closed.
    On error: an exception counts as a refusal and names the plugin.
    Runs on: a worker thread; may block for a moment.
    """
