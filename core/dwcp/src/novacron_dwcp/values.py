"""What the modules of the protocol share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Protocol

from attrs import frozen

Buffer = bytes | bytearray | memoryview

# What a batch may hold at the most, whatever the peer claims.
BATCH_BYTES_MAX: Final = 4 << 20
# What a record of ownership may hold at the most.
_EPOCH_MAX: Final = 2**63 - 1
_NAME_CHARS_MAX: Final = 255


class ProtocolError(Exception):
    """The peer broke the protocol's rules. The stream is to be closed and not used again.

    Args:
        message: What it did.
        hint: What to do about it, if there is something.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class LinkBroken(Exception):
    """The path to the peer broke, or the link was closed.

    Attributes:
        mendable: Whether trying again may help; False if the peer is the wrong one.
    """

    mendable: ClassVar[bool] = True


class ByteStream(Protocol):
    """What a link needs of a stream, which must be secured. Failures raise LinkBroken."""

    def send(self, buffers: Sequence[Buffer]) -> None: ...

    def receive_into(self, buffer: memoryview) -> int: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


@frozen(kw_only=True)
class PathReading:
    """What one stream's path is like now, and what it has cost so far.

    Attributes:
        at_s: When it was read, on a clock that only goes forward.
        rtt_s: The round trip now, queues on the way included.
        min_rtt_s: The shortest one lately: the path without queues.
        rate_bytes_per_s: The narrowest place of the path, as far as this stream has seen it.
        sent_bytes: Payload that has left the host, what was sent again included.
        resent_bytes: What of it was sent again.
        delivered_bytes: Payload that has arrived, each byte once.
        unsent_bytes: Taken from us, and not sent yet.
        lost: Packets taken for lost.
        reordered: Events of packets that came out of order.
        congestion_control: The algorithm's name; ``bbr`` finds the rate by measuring it.
        starved: Whether the stream had less to send than the path would have taken.
        stream: Its number, by which a steering knows it again; the link fills it in.
    """

    at_s: float
    rtt_s: float
    min_rtt_s: float
    rate_bytes_per_s: float
    sent_bytes: int
    resent_bytes: int = 0
    delivered_bytes: int = 0
    unsent_bytes: int = 0
    lost: int = 0
    reordered: int = 0
    congestion_control: str = ""
    starved: bool = False
    stream: int = 0


class Gauge(Protocol):
    """How a stream is measured and paced. A stream that has one offers it as ``gauge``."""

    def read(self) -> PathReading:
        """Raises: LinkBroken if the stream is gone."""
        ...

    def pace(self, bytes_per_s: int | None) -> None:
        """Send at most so fast, evenly; None is no limit. Raises: LinkBroken."""
        ...


@frozen(kw_only=True)
class Steer:
    """How a link is to use its streams.

    Attributes:
        streams: How many of them carry data.
        rate: Bytes per second of all together; None is no limit.
        pace: Bytes per second of each of these; None is no limit.
        unsent_bytes: How much may wait in the link before whoever sends is held back.
    """

    streams: int = 1
    rate: float | None = None
    pace: int | None = None
    unsent_bytes: int | None = None


class Steering(Protocol):
    """Decides for one link, without I/O, from what was measured."""

    def decide(self, now_s: float, readings: Sequence[PathReading], backlog: bool) -> Steer:
        """Called several times a second, with a reading of each stream that carries data.

        Args:
            now_s: On a clock that only goes forward.
            backlog: Whether there is more to send than the streams have taken.
        """
        ...


@frozen(kw_only=True)
class LinkMeasure:
    """A link as a whole, from its streams.

    Attributes:
        rtt_s: The shortest round trip of its streams now; 0 if none was measured.
        min_rtt_s: The same without queues.
        rate_bytes_per_s: The sum of what its streams' paths can carry; 0 if unknown.
        loss: The fraction of the bytes on the wire that had to be sent again by its streams.
        reordered: Events of packets out of order.
        streams: How many are alive.
        unsent_bytes: Waiting in the link or its streams.
        unacknowledged_bytes: Of DATA, that the peer has not taken.
        resent_bytes: Of frames that were sent again over another stream.
    """

    rtt_s: float = 0.0
    min_rtt_s: float = 0.0
    rate_bytes_per_s: float = 0.0
    loss: float = 0.0
    reordered: int = 0
    streams: int = 0
    unsent_bytes: int = 0
    unacknowledged_bytes: int = 0
    resent_bytes: int = 0


@frozen(kw_only=True)
class Ownership:
    """One machine's owner.

    Attributes:
        machine: The machine's name.
        owner: The node that may run it, and the only one.
        epoch: The fencing token: every change of owner raises it, so a stale owner is known by it.
        session: The migration session that made this record, empty if none did.
    """

    machine: str
    owner: str
    epoch: int
    session: str = ""


def check_record(record: Ownership, expected_epoch: int | None = None) -> None:
    """Raise ValueError if no register may keep a record, or if no record has the expected epoch."""
    fields: tuple[tuple[str, object, int], ...] = (
        ("machine", record.machine, 1),
        ("owner", record.owner, 1),
        ("session", record.session, 0),
    )
    for label, value, least in fields:
        if not isinstance(value, str) or not least <= len(value) <= _NAME_CHARS_MAX:
            raise ValueError(f"{label} is not a text of {least} to {_NAME_CHARS_MAX} characters")
        if not value.isprintable():
            raise ValueError(f"{label} {value!r} has characters that cannot be printed")
    if type(record.epoch) is not int or not 1 <= record.epoch <= _EPOCH_MAX:
        raise ValueError(f"epoch {record.epoch!r} is not between 1 and 2**63 - 1")
    if expected_epoch is not None and not 0 <= expected_epoch < _EPOCH_MAX:
        raise ValueError(f"expected_epoch {expected_epoch} is not between 0 and 2**63 - 2")


@frozen(kw_only=True)
class Pressure:
    """Where the time since the last one went, so that an encoder can choose its effort.

    Attributes:
        encode_s: Spent in the encoder.
        link_wait_s: Spent waiting for the link to take what was encoded.
        read_wait_s: Spent waiting for the machine to give batches.
        rate_bytes_per_s: What the link carries, as far as it knows; 0 while unknown.
    """

    encode_s: float
    link_wait_s: float
    read_wait_s: float
    rate_bytes_per_s: float = 0.0
