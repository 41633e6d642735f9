"""A link on real streams: two threads that move frames, and a dialler that mends breaks."""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from attrs import define, field

from novacron_dwcp.link import (
    HEADER,
    NUMBERED,
    Frame,
    Greeting,
    Kind,
    LinkCore,
    parse_greeting,
    parse_head,
)
from novacron_dwcp.values import Buffer, ByteStream, LinkBroken, ProtocolError

log = logging.getLogger("novacron.link")

# A live peer is heard at least this often; a silent one is taken for dead after the second time.
HEARTBEAT_S: Final = 2.0
DEAD_AFTER_S: Final = 8.0
# How long a closed link waits for the peer to have read the last of it.
LINGER_S: Final = 2.0
# Between attempts to mend a link.
BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
# An acknowledgement waits so long for others to join it, or until a part of the window is taken.
ACK_DELAY_S: Final = 0.005
ACK_PART: Final = 8

Dial = Callable[[], ByteStream]


def read_frame(stream: ByteStream) -> Frame | None:
    """The next frame; None if the peer has finished cleanly between two frames.

    Raises: LinkBroken (the stream broke), ProtocolError (it is no frame).
    """
    head = bytearray(HEADER.size)
    if not _fill(stream, memoryview(head), at_start=True):
        return None
    kind, sequence, length = parse_head(head)
    payload = bytearray(length)
    _fill(stream, memoryview(payload))
    return Frame(kind, sequence, payload)


def _fill(stream: ByteStream, view: memoryview, *, at_start: bool = False) -> bool:
    whole = len(view)
    while view:
        count = stream.receive_into(view)
        if count == 0:
            if at_start and len(view) == whole:
                return False
            raise LinkBroken("the stream ended in the middle of a frame")
        view = view[count:]
    return True


@define(eq=False)
class Link:
    """An authenticated, ordered, resumable path to one node, for one session.

    Callbacks come from the link's own threads and must not block.

    Args:
        session: What it is for.
        window: Bytes that this side holds at most.
        dial: Opens a secured stream to the peer; None on the side that was dialled.
        on_message: Called with each MESSAGE payload.
        on_reset: Called when the peer has forgotten the link: what was not acknowledged is gone.
        on_broken: Called with the reason when the link has been broken for ``timeout_s``, again
            and again while it stays so.
    """

    session: str
    window: int
    timeout_s: float
    on_message: Callable[[bytes], None]
    on_reset: Callable[[], None]
    on_broken: Callable[[str], None]
    dial: Dial | None = None
    core: LinkCore = field(init=False)
    sent_bytes: int = field(default=0, init=False)
    received_bytes: int = field(default=0, init=False)
    wait_s: float = field(default=0.0, init=False)
    _lock: threading.Condition = field(factory=threading.Condition, init=False)
    _attaching: threading.Lock = field(factory=threading.Lock, init=False)
    _outbox: deque[Frame] = field(factory=deque, init=False)
    _ack: Frame | None = field(default=None, init=False)
    _ack_bytes: int = field(default=0, init=False)
    _inbox: queue.SimpleQueue[Frame | None] = field(factory=queue.SimpleQueue, init=False)
    _stream: ByteStream | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)
    _met: bool = field(default=False, init=False)
    _parted: bool = field(default=False, init=False)
    _heard: float = field(factory=time.monotonic, init=False)
    _connected: threading.Event = field(factory=threading.Event, init=False)
    _threads: list[threading.Thread] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.core = LinkCore(secrets.token_bytes(16), self.session, self.window)

    # Life.

    def start(self) -> None:
        """Begin to dial, and go on until `close`. For the side that dials."""
        self._spawn(self._keep_dialling, "dial")
        self._spawn(self._send_frames, "send")

    def start_accepted(self, stream: ByteStream, hello: Greeting) -> None:
        """Begin with the stream that a peer opened. For the side that was dialled."""
        self.core.link = hello.link
        self._spawn(self._send_frames, "send")
        # Whatever the peer expects of a link that is not known here, it must begin anew.
        try:
            self.attach(stream, msgspec.structs.replace(hello, expects=1), known=False)
        except (LinkBroken, ProtocolError):
            self.close()
            raise

    def attach(self, stream: ByteStream, hello: Greeting, *, known: bool = True) -> None:
        """Go on over a stream that the peer has opened anew; an older one is closed."""
        with self._attaching:  # a stream that is older must not take the place of a newer one
            with self._lock:
                older, self._stream = self._stream, None
                welcome = self.core.greeting(known=known)
            if older is not None:
                older.close()
            stream.send([Frame(Kind.WELCOME, 0, welcome.payload).head(), welcome.payload])
            self._adopt(stream, hello)
        self._spawn(lambda: self._receive_until_broken(stream), "receive")

    def close(self) -> None:
        """End the link once what is queued has been sent. Never raises; twice is once."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            self._inbox.put(None)

    def end_data(self) -> None:
        """Make `receive_data` return None: nobody wants the batches any more."""
        self._inbox.put(None)

    @property
    def closed(self) -> bool:
        return self._closed

    def join(self) -> None:
        """Wait for the threads to end, after `close`."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout=10)

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    def wait_connected(self, timeout_s: float) -> bool:
        return self._connected.wait(timeout_s)

    # Sending and receiving.

    def send_message(self, payload: bytes) -> None:
        """Queue a message; it is delivered, in order, as long as both nodes live."""
        with self._lock:
            if not self._closed:
                self._outbox.append(self.core.number(Kind.MESSAGE, payload))
                self._lock.notify_all()

    def send_data(self, payload: Buffer, lead: bytes = b"") -> None:
        """Queue a batch that begins with ``lead``; blocks while the peer's window is full.

        Raises: LinkBroken once the link is closed.
        """
        began = time.monotonic()
        with self._lock:
            while not self._closed and not self.core.room(len(lead) + len(payload)):
                self._lock.wait()
            self.wait_s += time.monotonic() - began
            if self._closed:
                raise LinkBroken("the link was closed")
            self._outbox.append(self.core.number(Kind.DATA, payload, lead))
            self._lock.notify_all()

    def receive_data(self) -> Frame | None:
        """Wait for the next batch; None once the link is closed. Say `taken` when it is written."""
        return self._inbox.get()

    def taken(self, frame: Frame) -> None:
        """The batch has been written to the machine: let the peer send more."""
        with self._lock:
            self._acknowledge(self.core.taken(frame.sequence), frame.size)

    def _acknowledge(self, ack: Frame | None, size: int) -> None:
        waits = self._ack is not None
        self._ack = ack or self._ack
        self._ack_bytes += size
        if self._ack is not None and (not waits or self._ack_due()):
            self._lock.notify_all()

    def _ack_due(self) -> bool:
        window = min(self.core.window, self.core.peer_window)
        return self._ack_bytes >= window // ACK_PART

    # Threads.

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=f"link-{name}-{self.session}", daemon=True)
        with self._lock:
            self._threads = [alive for alive in self._threads if alive.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _adopt(self, stream: ByteStream, greeting: Greeting) -> None:
        with self._lock:
            if self._closed:
                raise LinkBroken("the link was closed")
            # Under the lock, so that what is sent at this moment comes after it and not in between.
            self._outbox = deque(self.core.resume(greeting))
            self._stream = stream
            self._heard = time.monotonic()
            self._connected.set()
            self._lock.notify_all()

    def _send_frames(self) -> None:
        while True:
            with self._lock:
                if not (self._stream and (self._outbox or self._ack)) and not self._closed:
                    self._lock.wait(HEARTBEAT_S)
                if self._ack is not None:
                    self._lock.wait_for(
                        lambda: self._closed or self._outbox or self._ack_due(), ACK_DELAY_S
                    )
                stream, closed = self._stream, self._closed
                frames, self._outbox = list(self._outbox), deque()
                if self._ack is not None or not frames:
                    # Repeating the last acknowledgement is the sign of life.
                    frames.append(self._ack or self.core.last_ack())
                self._ack, self._ack_bytes = None, 0
                silent_s = time.monotonic() - self._heard
            if stream is not None and silent_s > DEAD_AFTER_S:
                self._lose(stream, "the peer has been silent for too long")
            elif stream is not None:
                self._send_all(stream, [*frames, Frame(Kind.GOODBYE, 0)] if closed else frames)
            if closed:
                if stream is not None:
                    with contextlib.suppress(LinkBroken):
                        stream.finish()
                    self._linger(stream)
                    stream.close()
                return

    def _linger(self, stream: ByteStream) -> None:
        # Closed at once, a stream may lose what the peer has not read yet.
        with self._lock:
            self._lock.wait_for(lambda: self._parted or self._stream is not stream, LINGER_S)

    def _send_all(self, stream: ByteStream, frames: Sequence[Frame]) -> None:
        try:
            for frame in frames:
                stream.send([frame.head(), frame.payload])
                self.sent_bytes += HEADER.size + frame.size
        except LinkBroken as error:
            self._lose(stream, str(error))

    def _lose(self, stream: ByteStream, reason: str) -> None:
        """A stream is of no more use. Frames stay kept; whoever dials will mend it."""
        stream.close()
        with self._lock:
            lost = self._stream is stream
            if lost:
                self._stream = None
                self._connected.clear()
                self._outbox.clear()
                self._lock.notify_all()
        if lost and not self._closed:
            log.warning("session %s: the link broke: %s", self.session, reason)
            if self.dial is None:
                self._spawn(self._await_mending, "await")

    def _await_mending(self) -> None:
        while not self._closed:
            with self._lock:
                mended = self._lock.wait_for(
                    lambda: self._closed or self._stream is not None, self.timeout_s
                )
            if mended:
                return
            self.on_broken(f"the peer did not come back within {self.timeout_s:g} s")

    def _receive_until_broken(self, stream: ByteStream) -> None:
        try:
            while (frame := read_frame(stream)) is not None:
                if frame.kind is Kind.GOODBYE:
                    self._parted = True
                    self.close()
                    return
                self._take_frame(frame)
            reason = "the peer ended the stream"
        except ProtocolError as error:
            log.error("session %s: the peer broke the protocol: %s", self.session, error)
            reason = str(error)
            self.on_broken(f"the peer broke the protocol: {reason}")  # it would do so again
        except LinkBroken as error:
            reason = str(error)
        self._lose(stream, reason)

    def _take_frame(self, frame: Frame) -> None:
        size = len(frame.payload)
        self.received_bytes += HEADER.size + size
        with self._lock:
            self._heard = time.monotonic()
            if frame.kind is Kind.ACK:
                self.core.acknowledged(frame.sequence)
                self._lock.notify_all()
                return
            if frame.kind not in NUMBERED:
                raise ProtocolError(f"a {frame.kind.name} frame in the middle of a link")
            if not self.core.received(frame.kind, frame.sequence, size):
                return
            # Under the lock, since a receiver of the stream before may still be at work.
            if frame.kind is Kind.MESSAGE:
                self._acknowledge(self.core.taken(frame.sequence), size)
                self.on_message(bytes(frame.payload))
            else:
                self._inbox.put(frame)

    def _keep_dialling(self) -> None:
        broken_since = time.monotonic()
        attempt = 0
        while not self._closed:
            try:
                stream = self._dial_once()
            except (LinkBroken, ProtocolError) as error:
                if time.monotonic() - broken_since > self.timeout_s or not getattr(
                    error, "mendable", True
                ):
                    broken_since = time.monotonic()
                    self.on_broken(str(error))
                with self._lock:
                    self._lock.wait_for(
                        lambda: self._closed, BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)]
                    )
                attempt += 1
                continue
            attempt = 0
            self._receive_until_broken(stream)
            broken_since = time.monotonic()

    def _dial_once(self) -> ByteStream:
        assert self.dial is not None
        stream = self.dial()
        try:
            hello = self.core.greeting()
            stream.send([hello.head(), hello.payload])
            answer = read_frame(stream)
            if answer is None or answer.kind is not Kind.WELCOME:
                raise ProtocolError("the peer answered a greeting with something else")
            welcome = parse_greeting(answer.payload)
            if self._met and not welcome.known:
                with self._lock:
                    self.core = LinkCore(secrets.token_bytes(16), self.session, self.window)
                    self._ack, self._met = None, False
                self.on_reset()
                raise LinkBroken("the peer has forgotten the link")
            self._met = True
            self._adopt(stream, welcome)
        except (LinkBroken, ProtocolError):
            stream.close()
            raise
        return stream
