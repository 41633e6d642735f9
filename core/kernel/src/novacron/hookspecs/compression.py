"""Compression: batches become frames at the source and batches again at the destination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

from attrs import frozen
from novacron_dwcp import Batch, Buffer, Pressure

from novacron.hookspecs.node import NodeFacts
from novacron.markers import hookspec

__all__ = ["CodecSession", "Compression", "Decoder", "Encoder", "Pressure"]


@frozen(kw_only=True)
class CodecSession:
    """The migration that an encoder or a decoder is made for.

    Attributes:
        session: Its id; the same on both sides.
        machine: The machine's name.
        driver: The machine provider's name.
        peer: The other node.
        tenant: Whose machine it is; contents of different tenants must not be compared.
        memory_bytes: What the guest may use.
        role: ``source`` or ``destination``.
    """

    session: str
    machine: str
    driver: str
    peer: str
    tenant: str
    memory_bytes: int
    role: Literal["source", "destination"]


class Encoder(Protocol):
    """Encodes the batches of one session, in order, from one thread.

    It may have ``have() -> bytes``, called first, a few words (4 KiB at most) on what is held here;
    ``peer_has(have: bytes)``, called once before the first batch with what the other side's decoder
    said; ``figures()``, the bytes and seconds of each of its ways by name, from any thread; and
    ``ended(moved: bool)``, called once at the end.
    """

    def encode(self, batch: Batch) -> Buffer:
        """The batch as a frame's payload; at most 64 KiB longer than the packed batch.

        The result is the caller's; the batch is not kept.
        """
        ...

    def adapt(self, pressure: Pressure) -> None:
        """Told several times a second; may change the effort of the batches that follow."""
        ...


class Decoder(Protocol):
    """Decodes the frames of one session, in order, from one thread. The input is hostile.

    It may have ``peer_has(have: bytes)``, called first with what the other side's encoder said;
    ``have() -> bytes``, what it holds that need not be sent (at most a hundredth of the machine's
    memory, and 12 MiB); and ``ended(moved: bool)``. All run in a thread.
    """

    def decode(self, payload: Buffer) -> Batch:
        """The batch that was encoded.

        Never allocates more than ``BATCH_BYTES_MAX`` and a fixed amount, whatever the payload says.
        Raises: ProtocolError if the payload is not a sound frame; the decoder is then spent.
        """
        ...


class Compression(Protocol):
    """A compression provider: makes the encoder and the decoder of each session."""

    name: ClassVar[str]
    Settings: ClassVar[type]

    def __init__(self, settings: Any, node: NodeFacts) -> None: ...

    def encoder(self, session: CodecSession) -> Encoder: ...

    def decoder(self, session: CodecSession) -> Decoder: ...


@hookspec
def novacron_register_compression() -> Sequence[type[Compression]]:  # type: ignore[empty-body]
    """Offer codecs for the batches of a migration.

    When: once, when the plugins are loaded; a provider is made when the node starts.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: the provider classes, each with a ``name``. Both nodes need the one that a session uses.
    On error: the plugin is reported as failed and none of its hooks is used.
    Runs on: the loading thread; must not block.
    """
