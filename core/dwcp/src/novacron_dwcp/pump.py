"""The bulk path: batches in, frames out, and back. Runs in threads; Python touches a batch, never
a page.

Each frame's payload begins with a BLAKE3 digest over the digest before it and the batch: a wrong
batch is refused when it comes, and the last digest stands for all that was sent, in its order.
Then comes the name of the codec, where it is another than that of the frame before.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from attrs import define, field
from blake3 import blake3

from novacron_dwcp.batch import Batch
from novacron_dwcp.driver import Link
from novacron_dwcp.values import Buffer, Pressure, ProtocolError

DIGEST_BYTES: Final = 32
CODEC_NAME_MAX: Final = 63
# Codecs that one session may go through; each may hold memory until its end.
CODECS_MAX: Final = 8
ADAPT_EVERY_S: Final = 0.1
_LENGTHS = struct.Struct("<QQQ")


class Encodes(Protocol):
    """What the pump needs of an encoder."""

    def encode(self, batch: Batch) -> Buffer: ...

    def adapt(self, pressure: Pressure) -> None: ...


class Decodes(Protocol):
    """What the pump needs of a decoder."""

    def decode(self, payload: Buffer) -> Batch: ...


class Reads(Protocol):
    """What the pump needs of a machine that leaves."""

    def read(self) -> Batch | None: ...


class Writes(Protocol):
    """What the pump needs of a machine that arrives."""

    def write(self, batch: Batch) -> None: ...


def chain(previous: bytes, batch: Batch) -> bytes:
    """The digest of everything up to and including this batch."""
    lengths = _LENGTHS.pack(len(batch.layout), len(batch.addresses), len(batch.pages))
    hasher = blake3(b"".join((previous, lengths, batch.layout, batch.addresses)))
    hasher.update(batch.pages)
    return hasher.digest()


@define(eq=False)
class Pump:
    """What both directions count.

    Attributes:
        batches: Moved so far.
        raw_bytes: Of machine state.
        digest: See `chain`; hex in messages.
    """

    batches: int = field(default=0, init=False)
    raw_bytes: int = field(default=0, init=False)
    digest: bytes = field(default=bytes(DIGEST_BYTES), init=False)

    def _count(self, batch: Batch) -> None:
        self.digest = chain(self.digest, batch)
        self.raw_bytes += batch.nbytes


@define(eq=False)
class OutwardPump(Pump):
    """Reads a machine's state and sends it, until the machine is paused and all is out.

    Args:
        codec: The name under which the other side finds the decoder.

    Attributes:
        payload_bytes: Of frames made of ``raw_bytes``.
    """

    outgoing: Reads
    codec: str
    encoder: Encodes
    link: Link
    payload_bytes: int = field(default=0, init=False)
    _next: tuple[str, Encodes] | None = field(default=None, init=False)
    _switched: Callable[[], None] | None = field(default=None, init=False)
    _named: str = field(default="", init=False)

    def switch(self, codec: str, encoder: Encodes, switched: Callable[[], None]) -> None:
        """Encode with another from the next batch on; ``switched`` is called then, by `run`'s
        thread. From any thread. An earlier switch that has not happened yet is forgotten."""
        self._switched = switched
        self._next = (codec, encoder)

    def run(self) -> None:
        """Blocks. Raises what the machine, the encoder and the link raise."""
        read_s = encode_s = 0.0
        began, waited = time.monotonic(), self.link.wait_s
        while True:
            start = time.monotonic()
            batch = self.outgoing.read()
            read = time.monotonic()
            if batch is None:
                return
            self._take_turn()
            self._count(batch)
            payload = self.encoder.encode(batch)
            encoded = time.monotonic()
            self.payload_bytes += len(payload)
            self.link.send_data(payload, self._lead())
            self.batches += 1
            read_s += read - start
            encode_s += encoded - read
            if encoded - began >= ADAPT_EVERY_S:
                wait_s = self.link.wait_s - waited
                pressure = Pressure(
                    encode_s=encode_s,
                    link_wait_s=wait_s,
                    read_wait_s=read_s,
                    rate_bytes_per_s=self.link.measure().rate_bytes_per_s,
                )
                self.encoder.adapt(pressure)
                read_s = encode_s = 0.0
                began, waited = time.monotonic(), self.link.wait_s

    def _take_turn(self) -> None:
        turn, self._next = self._next, None
        if turn is not None:
            self.codec, self.encoder = turn
            if self._switched is not None:
                self._switched()

    def _lead(self) -> bytes:
        name = b"" if self.codec == self._named else self.codec.encode("ascii")
        self._named = self.codec
        return b"".join((self.digest, bytes((len(name),)), name))


@define(eq=False)
class InwardPump(Pump):
    """Takes what the link brings and writes it to the machine, until the link is closed.

    Args:
        decoder_of: The decoder by its codec's name, always the same; raises for an unknown one.
    """

    link: Link
    decoder_of: Callable[[str], Decodes]
    incoming: Writes
    _decoder: Decodes | None = field(default=None, init=False)
    _codecs: set[str] = field(factory=set, init=False)
    _arrived: threading.Condition = field(factory=threading.Condition, init=False)
    _ended: bool = field(default=False, init=False)

    def run(self) -> None:
        """Blocks. Raises what the decoder and the machine raise; ProtocolError for a batch that
        is not the one that was sent."""
        try:
            while (frame := self.link.receive_data()) is not None:
                batch = self._decode(frame.payload)
                self.incoming.write(batch)
                self.link.taken(frame)
                with self._arrived:
                    self.batches += 1
                    self._arrived.notify_all()
        finally:
            with self._arrived:
                self._ended = True
                self._arrived.notify_all()

    def _decode(self, payload: Buffer) -> Batch:
        view = memoryview(payload)
        if len(view) <= DIGEST_BYTES:
            raise ProtocolError("a batch without its digest")
        begin = DIGEST_BYTES + 1 + view[DIGEST_BYTES]
        if begin > len(view) or view[DIGEST_BYTES] > CODEC_NAME_MAX:
            raise ProtocolError("a batch without its codec's name")
        if begin > DIGEST_BYTES + 1:
            self._change_codec(bytes(view[DIGEST_BYTES + 1 : begin]))
        if self._decoder is None:
            raise ProtocolError("the first batch does not name its codec")
        batch = self._decoder.decode(view[begin:])
        self._count(batch)
        if self.digest != view[:DIGEST_BYTES]:
            raise ProtocolError(
                f"batch {self.batches + 1} is not what the source sent", hint="retry the migration"
            )
        return batch

    def _change_codec(self, name: bytes) -> None:
        text = name.decode("ascii", "backslashreplace")
        self._codecs.add(text)
        if len(self._codecs) > CODECS_MAX:
            raise ProtocolError(f"more than {CODECS_MAX} codecs in one session")
        self._decoder = self.decoder_of(text)

    def wait_for(self, batches: int) -> bool:
        """Block until that many were written; False if the pump ended before."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._ended or self.batches >= batches)
            return self.batches == batches
