"""The bulk path: batches in, frames out, and back. Runs in threads; Python touches a batch, never
a page.

Each frame's payload begins with a BLAKE3 digest over the digest before it and the batch: a wrong
batch is refused when it comes, and the last digest stands for all that was sent, in its order.
"""

from __future__ import annotations

import struct
import threading
import time
from typing import Final

from attrs import define, field
from blake3 import blake3
from novacron_dwcp.driver import Link

from novacron.batch import Batch, Buffer
from novacron.errors import PeerProtocolError
from novacron.hookspecs.compression import Decoder, Encoder, Pressure
from novacron.hookspecs.machine import Incoming, Outgoing

DIGEST_BYTES: Final = 32
ADAPT_EVERY_S: Final = 0.1
_LENGTHS = struct.Struct("<QQQ")


def chain(previous: bytes, batch: Batch) -> bytes:
    """The digest of everything up to and including this batch."""
    hasher = blake3(previous)
    hasher.update(_LENGTHS.pack(len(batch.layout), len(batch.addresses), len(batch.pages)))
    for part in (batch.layout, batch.addresses, batch.pages):
        hasher.update(part)
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
    """Reads a machine's state and sends it, until the machine is paused and all is out."""

    outgoing: Outgoing
    encoder: Encoder
    link: Link

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
            self._count(batch)
            payload = self.encoder.encode(batch)
            encoded = time.monotonic()
            self.link.send_data(payload, self.digest)
            self.batches += 1
            read_s += read - start
            encode_s += encoded - read
            if encoded - began >= ADAPT_EVERY_S:
                wait_s = self.link.wait_s - waited
                pressure = Pressure(encode_s=encode_s, link_wait_s=wait_s, read_wait_s=read_s)
                self.encoder.adapt(pressure)
                read_s = encode_s = 0.0
                began, waited = time.monotonic(), self.link.wait_s


@define(eq=False)
class InwardPump(Pump):
    """Takes what the link brings and writes it to the machine, until the link is closed."""

    link: Link
    decoder: Decoder
    incoming: Incoming
    _arrived: threading.Condition = field(factory=threading.Condition, init=False)
    _ended: bool = field(default=False, init=False)

    def run(self) -> None:
        """Blocks. Raises what the decoder and the machine raise; PeerProtocolError for a batch
        that is not the one that was sent."""
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
        if len(view) < DIGEST_BYTES:
            raise PeerProtocolError("a batch without its digest")
        batch = self.decoder.decode(view[DIGEST_BYTES:])
        self._count(batch)
        if self.digest != view[:DIGEST_BYTES]:
            raise PeerProtocolError(
                f"batch {self.batches + 1} is not what the source sent", hint="retry the migration"
            )
        return batch

    def wait_for(self, batches: int) -> bool:
        """Block until that many were written; False if the pump ended before."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._ended or self.batches >= batches)
            return self.batches == batches
