"""Compression: batches become frames at the source and batches again at the destination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from attrs import frozen

from novacron.batch import Batch, Buffer
from novacron.hookspecs.node import NodeFacts
from novacron.markers import hookspec


@frozen(kw_only=True)
class Pressure:
    """Where the time since the last one went, so that an encoder can choose its effort.

    Attributes:
        encode_s: Spent in the encoder.
        link_wait_s: Spent waiting for the link to take what was encoded.
        read_wait_s: Spent waiting for the machine to give batches.
    """

    encode_s: float
    link_wait_s: float
    read_wait_s: float


class Encoder(Protocol):
    """Encodes the batches of one session, in order, from one thread."""

    def encode(self, batch: Batch) -> Buffer:
        """The batch as a frame's payload; at most 64 KiB longer than the packed batch.

        The result is the caller's; the batch is not kept.
        """
        ...

    def adapt(self, pressure: Pressure) -> None:
        """Told several times a second; may change the effort of the batches that follow."""
        ...


class Decoder(Protocol):
    """Decodes the frames of one session, in order, from one thread. The input is hostile."""

    def decode(self, payload: Buffer) -> Batch:
        """The batch that was encoded.

        Never allocates more than ``BATCH_BYTES_MAX`` and a fixed amount, whatever the payload says.
        Raises: PeerProtocolError if the payload is not a sound frame; the decoder is then spent.
        """
        ...


class Compression(Protocol):
    """A compression provider: makes the encoder and the decoder of each session."""

    name: ClassVar[str]
    Settings: ClassVar[type]

    def __init__(self, settings: Any, node: NodeFacts) -> None: ...

    def encoder(self) -> Encoder: ...

    def decoder(self) -> Decoder: ...


@hookspec
def novacron_register_compression() -> Sequence[type[Compression]]:  # type: ignore[empty-body]
    """Offer codecs for the batches of a migration.

    When: once, when the plugins are loaded; a provider is made when the node starts.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: the provider classes, each with a ``name``. Both nodes need the one that a session uses.
    On error: the plugin is reported as failed and none of its hooks is used.
    Runs on: the loading thread; must not block.
    """
