"""Messages between members over streams: frames, outboxes, and who is dialled again when.

Each member opens one stream to each other one, for what it sends; what it receives comes over the
streams that the others opened. A message may be lost (the stream broke, the outbox was full), as
cores expect it; nobody waits for a peer that does not read.

A frame is its length (4 bytes, big-endian) and as many bytes.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from attrs import define, field

from novacron_agreement.effects import MESSAGE_BYTES_MAX

log = logging.getLogger("novacron.agreement.peers")

HEADER: Final = struct.Struct(">I")
# What may wait to be sent to one peer; more is dropped.
OUTBOX_BYTES: Final = 16 << 20
# So much is given to a stream at once.
BATCH_BYTES: Final = 256 << 10
# A peer that has said nothing for so long is dialled anew: a connection that a partition has cut
# would find back only after minutes.
SILENT_S: Final = 3.0
# Between attempts to reach a peer.
BACKOFF_S: Final = (0.02, 0.05, 0.1, 0.2, 0.5)
RECEIVE_BYTES: Final = 256 << 10


class FrameError(ValueError):
    """The peer sent what is no frame of this protocol. Its stream is to be closed."""


class ByteStream(Protocol):
    """An ordered stream of bytes to an authenticated peer; failures raise an Exception."""

    def send(self, buffers: Sequence[bytes]) -> None: ...

    def receive_into(self, buffer: memoryview) -> int: ...

    def close(self) -> None: ...


def frames(stream: ByteStream, longest: int) -> Iterator[bytes]:
    """What a peer sends, frame by frame, until it ends the stream cleanly.

    Raises: FrameError for one that is longer than ``longest``, before it is stored, and for a
        stream that ends within one; whatever the stream raises.
    """
    room = memoryview(bytearray(RECEIVE_BYTES))
    kept = bytearray()
    while count := stream.receive_into(room):
        kept += room[:count]
        at = 0
        while len(kept) - at >= HEADER.size:
            (length,) = HEADER.unpack_from(kept, at)
            if length > longest:
                raise FrameError(f"a frame of {length} bytes, and at most {longest} are taken")
            end = at + HEADER.size + length
            if len(kept) < end:
                break
            yield bytes(kept[at + HEADER.size : end])
            at = end
        del kept[:at]
    if kept:
        raise FrameError("the stream ended within a frame")


class Outbox:
    """Frames that wait for a thread to send them. It never blocks who puts one in."""

    __slots__ = ("_bytes", "_queue", "dropped")

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._bytes = 0
        self.dropped = 0

    def put(self, frame: bytes) -> None:
        if self._bytes > OUTBOX_BYTES:
            self.dropped += 1
            return
        self._bytes += len(frame)
        self._queue.put(frame)

    def wake(self) -> None:
        """Let `take` return, with nothing if nothing waits."""
        self._queue.put(b"")

    def end(self) -> None:
        """Let `take` return None, after all that was put in before."""
        self._queue.put(None)

    def take(self, wait: bool = True) -> list[bytes] | None:
        """What waits, headers included, up to about `BATCH_BYTES`; waits for the first.

        Returns: None once it was ended.
        """
        taken: list[bytes] = []
        size = 0
        while size < BATCH_BYTES:
            try:
                frame = self._queue.get(block=wait and not taken)
            except queue.Empty:
                break
            if frame is None:
                self._queue.put(None)  # for whoever asks again
                if not taken:
                    return None
                break
            if not frame:
                break
            taken += (HEADER.pack(len(frame)), frame)
            size += len(frame)
        # Not exact when both sides run at once; an empty queue sets it right.
        self._bytes = 0 if self._queue.empty() else max(0, self._bytes - size)
        return taken


@define(eq=False)
class _Peer:
    """A peer that messages are sent to, by a thread of its own.

    Attributes:
        unanswered_since_s: When the first message was sent since something was heard of it.
        sending_since_s: When the call began that gives bytes to the stream, while it goes on.
        ended: Whether the peer has ended the stream.
        trouble: What is wrong with the way there; "" if nothing.
    """

    name: str
    outbox: Outbox = field(factory=Outbox)
    stream: ByteStream | None = None
    unanswered_since_s: float | None = None
    sending_since_s: float | None = None
    ended: bool = False
    trouble: str = "not tried yet"


@define(eq=False)
class Peers:
    """A core's messages to and from its peers.

    Args:
        open_stream: A new stream to a peer (its name; its address, "" if none is known). Blocks;
            raises when that fails.
        deliver: Takes a peer's message (the sender's proved name). Called in many threads.
    """

    open_stream: Callable[[str, str], ByteStream]
    deliver: Callable[[str, bytes], None]
    _addresses: dict[str, str] = field(factory=dict, init=False)
    _peers: dict[str, _Peer] = field(factory=dict, init=False)
    _closed: threading.Event = field(factory=threading.Event, init=False)

    def know(self, addresses: dict[str, str]) -> None:
        """Who takes part and where they listen, "" for those whose address is known otherwise.

        Streams to them are kept open, so that a message that matters need not wait for one.
        """
        self._addresses = dict(addresses)
        for name in addresses:
            self._peer(name)

    def send(self, to: str, message: bytes) -> None:
        """Put a message into a peer's outbox. Called by one thread, as `know` is."""
        self._peer(to).outbox.put(message)

    def _peer(self, name: str) -> _Peer:
        peer = self._peers.get(name)
        if peer is None:
            self._peers[name] = peer = _Peer(name)
            threading.Thread(
                target=self._send_to, args=(peer,), name=f"to {name}", daemon=True
            ).start()
        return peer

    def receive_from(self, sender: str, stream: ByteStream) -> None:
        """Deliver what comes over a stream that a peer has opened, until it ends."""
        try:
            for message in frames(stream, MESSAGE_BYTES_MAX):
                if self._closed.is_set():
                    return
                if (peer := self._peers.get(sender)) is not None:
                    peer.unanswered_since_s = None
                self.deliver(sender, message)
        except FrameError as error:
            log.warning("a stream from %s was closed: %s", sender, error)

    def states(self) -> dict[str, str]:
        """What is wrong with the way to each peer; "" for those that it is open to."""
        return {peer.name: peer.trouble for peer in list(self._peers.values())}

    def look_after(self) -> None:
        """Give up streams that a peer does not read; to be called about once a second."""
        now_s = time.monotonic()
        for peer in list(self._peers.values()):
            stream, since_s = peer.stream, peer.sending_since_s
            if stream is not None and since_s is not None and now_s - since_s > SILENT_S:
                stream.close()  # whoever sends on it finds out

    def close(self) -> None:
        self._closed.set()
        for peer in list(self._peers.values()):
            peer.outbox.end()
            if peer.stream is not None:
                peer.stream.close()

    def _send_to(self, peer: _Peer) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                if peer.stream is not None and (peer.ended or self._silent(peer)):
                    self._drop(peer)
                if peer.stream is None:
                    self._dial(peer)
                failures = 0
                self._send_on(peer)
            # Whatever a transport, TLS or a refusal raises: the message is lost, and that is all.
            except Exception as error:
                peer.sending_since_s = None
                if str(error) != peer.trouble:
                    log.info("no way to %s for now: %s", peer.name, error)
                peer.trouble = str(error) or type(error).__name__
                self._drop(peer)
                self._closed.wait(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                failures += 1
                while peer.outbox.take(wait=False):
                    pass  # what waited meanwhile has been overtaken
                if peer.name not in self._addresses and failures > len(BACKOFF_S):
                    self._peers.pop(peer.name, None)  # it takes part no longer
                    return
        self._drop(peer)

    def _send_on(self, peer: _Peer) -> None:
        """Send what comes, until the stream is not to be used any more."""
        assert peer.stream is not None
        while not peer.ended and not self._silent(peer):
            batch = peer.outbox.take()
            if batch is None:
                return
            if not batch or peer.ended:
                continue
            peer.sending_since_s = now_s = time.monotonic()
            if peer.unanswered_since_s is None:
                peer.unanswered_since_s = now_s
            peer.stream.send(batch)
            peer.sending_since_s = None

    def _dial(self, peer: _Peer) -> None:
        stream = self.open_stream(peer.name, self._addresses.get(peer.name, ""))
        peer.stream, peer.ended, peer.trouble = stream, False, ""
        peer.unanswered_since_s = None

        def watch() -> None:
            # Nothing comes this way but its end, and that must be known before the next message:
            # the first one into a stream whose peer was restarted would be lost without a word.
            with contextlib.suppress(Exception):
                stream.receive_into(memoryview(bytearray(1)))
            if peer.stream is stream:
                peer.ended = True
                peer.outbox.wake()

        threading.Thread(target=watch, name=f"end of {peer.name}", daemon=True).start()

    def _silent(self, peer: _Peer) -> bool:
        """Whether the stream may be one that a partition has cut."""
        since_s = peer.unanswered_since_s
        return since_s is not None and time.monotonic() - since_s > SILENT_S

    def _drop(self, peer: _Peer) -> None:
        stream, peer.stream = peer.stream, None
        if stream is not None:
            with contextlib.suppress(Exception):
                stream.close()
