"""A link on real streams: threads that move frames, diallers that mend breaks, and a keeper that
measures, steers and watches."""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec
from attrs import define, evolve, field

from novacron_dwcp.link import (
    BULK,
    FRAME_BYTES_MAX,
    HEADER,
    NUMBERED,
    OLDEST,
    STREAMS_MAX,
    VERSION,
    Assembly,
    Frame,
    Greeting,
    Kind,
    LinkCore,
    Meter,
    parse_ack,
    parse_greeting,
    parse_head,
)
from novacron_dwcp.values import (
    Buffer,
    ByteStream,
    Gauge,
    LinkBroken,
    LinkMeasure,
    PathReading,
    ProtocolError,
    Steer,
    Steering,
)

log = logging.getLogger("novacron.link")

# A live peer is heard on each stream at least this often; a silent stream is taken for dead after
# the second time, or after so many round trips if that is longer.
HEARTBEAT_S: Final = 1.0
DEAD_AFTER_S: Final = 8.0
DEAD_AFTER_ROUND_TRIPS: Final = 12
# How long a closed link waits for the peer to have read the last of it.
LINGER_S: Final = 2.0
# Between attempts to mend a stream.
BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
# An acknowledgement waits so long for others to join it, or until a part of the window is taken.
ACK_DELAY_S: Final = 0.005
ACK_PART: Final = 8
# What has come and cannot be taken yet is told at least this often: it need not be sent again then.
ARRIVAL_DELAY_S: Final = 0.02
# What is asked of the streams, and of the steering, so often.
STEER_EVERY_S: Final = 0.1
# A stream takes frames up to this size at once.
TAKE_BYTES: Final = 128 << 10
# The least that a batch is cut into; each part costs a header, a lock and a record of TLS.
PART_BYTES_MIN: Final = 128 << 10
# What may wait in a link that nobody steers.
UNSENT_BYTES: Final = 1 << 20
# What a lost stream carried waits so long for news of its arrival, and two round trips.
ORPHAN_S: Final = 0.05

Dial = Callable[[], ByteStream]


def read_frame(stream: ByteStream, heard: Callable[[], None] = lambda: None) -> Frame | None:
    """The next frame; None if the peer has finished cleanly between two frames.

    Args:
        heard: Called whenever bytes came.

    Raises: LinkBroken (the stream broke), ProtocolError (it is no frame).
    """
    head = bytearray(HEADER.size)
    if not _fill(stream, memoryview(head), heard, at_start=True):
        return None
    kind, sequence, length = parse_head(head)
    payload = bytearray(length)
    _fill(stream, memoryview(payload), heard)
    return Frame(kind, sequence, payload)


def _fill(
    stream: ByteStream, view: memoryview, heard: Callable[[], None], *, at_start: bool = False
) -> bool:
    whole = len(view)
    while view:
        count = stream.receive_into(view)
        if count == 0:
            if at_start and len(view) == whole:
                return False
            raise LinkBroken("the stream ended in the middle of a frame")
        heard()
        view = view[count:]
    return True


def _buffers(frames: Iterable[Frame]) -> list[Buffer]:
    made: list[Buffer] = []
    for frame in frames:
        made += [frame.head(), frame.payload] if frame.payload else [frame.head()]
    return made


@define(eq=False)
class _Line:
    """One stream of a link, and what is known of it.

    Attributes:
        number: From 1 in the order of opening; the side that dials chooses it.
        slot: Which of the wanted streams it is, from 0.
        generation: Of the dialler that it came from.
        heard_s, spoke_s: When there was a last sign of life of the peer, and of ours.
        waiting: Whether its sender has nothing to do.
        retiring: It carries nothing new, and ends.
        finished: We have said that nothing more comes; ``ended``: the peer has.
        pace: What it was last told.
    """

    number: int
    slot: int
    generation: int
    stream: ByteStream
    gauge: Gauge | None = None
    heard_s: float = field(factory=time.monotonic)
    spoke_s: float = field(factory=time.monotonic)
    reading: PathReading | None = None
    waiting: bool = False
    retiring: bool = False
    finished: bool = False
    ended: bool = False
    pace: int | None = None

    def hear(self) -> None:
        self.heard_s = time.monotonic()


class _Unanswered(LinkBroken):
    """The peer did not answer a greeting; an older version of the protocol is proposed now."""


@define(eq=False)
class Link:
    """An authenticated, ordered, resumable path to one node, for one session.

    Callbacks come from the link's own threads and must not block.

    Args:
        session: What it is for.
        window: Bytes that this side holds at most, and a frame for each stream.
        dial: Opens a secured stream to the peer; None on the side that was dialled. Called by
            several threads at once if there are several streams.
        on_message: Called with each MESSAGE payload.
        on_reset: Called when the peer has forgotten the link: what was not acknowledged is gone.
        on_broken: Called with the reason when the link has been broken for ``timeout_s``, again
            and again while it stays so.
        steering: Decides how many streams there are and how fast each sends; without it there is
            one, as fast as it can.
        version: The newest version of the protocol to use; which one is in use, ``core`` knows.
    """

    session: str
    window: int
    timeout_s: float
    on_message: Callable[[bytes], None]
    on_reset: Callable[[], None]
    on_broken: Callable[[str], None]
    dial: Dial | None = None
    steering: Steering | None = None
    version: int = VERSION
    core: LinkCore = field(init=False)
    sent_bytes: int = field(default=0, init=False)
    received_bytes: int = field(default=0, init=False)
    wait_s: float = field(default=0.0, init=False)
    _steer: Steer = field(factory=Steer, init=False)
    _limit: float | None = field(default=None, init=False)
    _meter: Meter = field(factory=Meter, init=False)
    _lock: threading.Condition = field(factory=threading.Condition, init=False)
    _wake: threading.Event = field(factory=threading.Event, init=False)
    _lines: dict[int, _Line] = field(factory=dict, init=False)
    _carry: frozenset[int] = field(default=frozenset(), init=False)
    _line_count: int = field(default=0, init=False)
    _slots: set[tuple[int, int]] = field(factory=set, init=False)
    _generation: int = field(default=0, init=False)
    _ack_at_s: float | None = field(default=None, init=False)
    _ack_bytes: int = field(default=0, init=False)
    _assembly: Assembly = field(factory=Assembly, init=False)
    _inbox: queue.SimpleQueue[Frame | None] = field(factory=queue.SimpleQueue, init=False)
    _closed: bool = field(default=False, init=False)
    _met: bool = field(default=False, init=False)
    _proposal: int = field(default=0, init=False)
    _peer_last: int | None = field(default=None, init=False)
    _parted: bool = field(default=False, init=False)
    _broken_since_s: float = field(factory=time.monotonic, init=False)
    _connected: threading.Event = field(factory=threading.Event, init=False)
    _threads: list[threading.Thread] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._proposal = self.version
        self.core = LinkCore(secrets.token_bytes(16), self.session, self.window, self.version)

    # Life.

    def start(self) -> None:
        """Begin to dial, and go on until `close`. For the side that dials."""
        self._spawn(self._keep, "keep")
        self._start_slot(0)

    def start_accepted(self, stream: ByteStream, hello: Greeting) -> None:
        """Begin with the stream that a peer opened. For the side that was dialled."""
        self.core.link = hello.link
        self.core.version = min(hello.version, self.version)
        self._spawn(self._keep, "keep")
        # Whatever the peer expects of a link that is not known here, it must begin anew.
        try:
            anew = msgspec.structs.replace(hello, expects=1, received=())
            self.attach(stream, anew, known=False)
        except (LinkBroken, ProtocolError):
            self.close()
            raise

    def attach(self, stream: ByteStream, hello: Greeting, *, known: bool = True) -> None:
        """Go on over a stream that the peer has opened, too or anew.

        Raises: LinkBroken, ProtocolError; the stream is the caller's to close then.
        """
        with self._lock:
            replaced = self._lines.get(hello.replaces)
            if hello.stream in self._lines:
                raise ProtocolError(f"a second stream with the number {hello.stream}")
            if len(self._lines) - (replaced is not None) >= STREAMS_MAX:
                raise ProtocolError(f"more than {STREAMS_MAX} streams of one link")
        if replaced is not None:
            # First, so that the greeting tells all that will ever come of it.
            self._lose(replaced, "the peer replaced the stream")
        with self._lock:
            welcome = self.core.greeting(known=known)
        stream.send([Frame(Kind.WELCOME, 0, welcome.payload).head(), welcome.payload])
        line = _Line(hello.stream, hello.stream, 0, stream, getattr(stream, "gauge", None))
        self._adopt(line, hello)
        self._spawn(lambda: self._receive_on(line), "receive")

    def redial(self, dial: Dial) -> None:
        """Go over to streams of another dialler. The old ones carry on until the first new one is
        there, and then bring what they have taken to its end: no frame is lost. Set `steering`
        before, if it is another one's."""
        with self._lock:
            self.dial = dial
            self._generation += 1
            if self.steering is None:
                self._steer = Steer()
                self._set_rate()
            slots = range(self._steer.streams)
        for slot in slots:
            self._start_slot(slot)

    def limit(self, bytes_per_s: float | None) -> None:
        """From now on send at most so fast; None is no limit."""
        with self._lock:
            self._limit = bytes_per_s
            self._set_rate()
        self._wake.set()

    def _set_rate(self) -> None:
        rates = [rate for rate in (self._limit, self._steer.rate) if rate is not None]
        self._meter.limit(min(rates, default=None), time.monotonic())
        self._lock.notify_all()

    def close(self) -> None:
        """End the link once what is queued has been sent. Never raises; twice is once."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            self._inbox.put(None)
        self._wake.set()

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

    def measure(self) -> LinkMeasure:
        """What the link is like now."""
        with self._lock:
            lines = [line for line in self._lines.values() if line.gauge is not None]
        found = [reading for line in lines if (reading := _read(line)) is not None]
        sent = sum(reading.sent_bytes for reading in found)
        with self._lock:
            return LinkMeasure(
                rtt_s=min((reading.rtt_s for reading in found), default=0.0),
                min_rtt_s=min((reading.min_rtt_s for reading in found), default=0.0),
                rate_bytes_per_s=sum(reading.rate_bytes_per_s for reading in found),
                loss=sum(reading.resent_bytes for reading in found) / sent if sent else 0.0,
                reordered=sum(reading.reordered for reading in found),
                streams=len(self._lines),
                unsent_bytes=self.core.unsent_bytes
                + sum(reading.unsent_bytes for reading in found),
                unacknowledged_bytes=self.core.unacknowledged_bytes,
                resent_bytes=self.core.resent_bytes,
            )

    # Sending and receiving.

    def send_message(self, payload: bytes) -> None:
        """Queue a message; it is delivered, in order, as long as both nodes live."""
        with self._lock:
            if not self._closed:
                self.core.number(Kind.MESSAGE, payload)
                self._lock.notify_all()

    def send_data(self, payload: Buffer, lead: bytes = b"") -> None:
        """Queue a batch that begins with ``lead``; blocks while the peer's window is full, or more
        than the steering allows waits here already.

        Raises: LinkBroken once the link is closed.
        """
        began = time.monotonic()
        size = len(lead) + len(payload)
        with self._lock:
            self._lock.wait_for(lambda: self._closed or self._has_room(size))
            self.wait_s += time.monotonic() - began
            if self._closed:
                raise LinkBroken("the link was closed")
            self.core.number_batch(payload, lead, self._part_bytes())
            self._lock.notify_all()

    def _part_bytes(self) -> int:
        """A batch that only one of several streams carried would hold up all that is behind it."""
        if len(self._carry) < 2:
            return FRAME_BYTES_MAX
        return max(PART_BYTES_MIN, self._unsent_most() // (2 * len(self._carry)))

    def _unsent_most(self) -> int:
        most = self._steer.unsent_bytes
        return UNSENT_BYTES if most is None else most

    def _has_room(self, size: int) -> bool:
        return self.core.room(size) and self.core.unsent_bytes <= self._unsent_most()

    def receive_data(self) -> Frame | None:
        """Wait for the next batch; None once the link is closed. Say `taken` when it is written."""
        return self._inbox.get()

    def taken(self, frame: Frame) -> None:
        """The batch has been written to the machine: let the peer send more."""
        with self._lock:
            news = [self.core.taken(number) for number in self._assembly.parts_of(frame)]
            if any(news):
                self._acknowledge(frame.size)

    def _acknowledge(self, size: int, delay_s: float = ACK_DELAY_S) -> None:
        """Let an acknowledgement go out soon, or at once if it opens much of the window."""
        at_s = time.monotonic() + delay_s
        self._ack_bytes += size
        if self._ack_bytes >= min(self.core.window, self.core.peer_window) // ACK_PART:
            at_s = 0.0
        if self._ack_at_s is None or at_s < self._ack_at_s:
            self._ack_at_s = at_s
            self._lock.notify_all()

    # Streams.

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=f"link-{name}-{self.session}", daemon=True)
        with self._lock:
            self._threads = [alive for alive in self._threads if alive.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _adopt(self, line: _Line, greeting: Greeting) -> None:
        with self._lock:
            if self._closed:
                raise LinkBroken("the link was closed")
            if line.generation < self._generation and self.dial is not None:
                raise LinkBroken("the link goes over other streams now")
            self.core.opened(line.number, greeting)
            for other in self._lines.values():
                other.retiring = other.retiring or other.generation < line.generation
            self._lines[line.number] = line
            self._choose_carriers()
            self._connected.set()
            self._lock.notify_all()
        self._wake.set()
        self._spawn(lambda: self._send_on(line), "send")

    def _choose_carriers(self) -> None:
        able = [line for line in self._lines.values() if not line.retiring]
        able.sort(key=lambda line: line.slot)
        streams = self._steer.streams if self.dial is not None else STREAMS_MAX
        self._carry = frozenset(line.number for line in able[:streams])

    def _lose(self, line: _Line, reason: str) -> None:
        """A stream is of no more use. What it carried is kept; whoever dials will mend it."""
        line.stream.close()
        with self._lock:
            lost = self._lines.get(line.number) is line
            if lost:
                del self._lines[line.number]
                rtt_s = line.reading.rtt_s if line.reading else 0.0
                self.core.lost(line.number, time.monotonic() + ORPHAN_S + 2 * rtt_s)
                self._choose_carriers()
                if not self._lines:
                    self._connected.clear()
                    self._broken_since_s = time.monotonic()
                self._lock.notify_all()
        self._wake.set()
        if lost and not self._closed and not line.retiring:
            log.warning("session %s: a stream broke: %s", self.session, reason)

    # Sending, one thread per stream.

    def _send_on(self, line: _Line) -> None:
        try:
            while (frames := self._next_frames(line)) is not None:
                line.stream.send(_buffers(frames))
            line.stream.finish()
            self._part(line)
        except LinkBroken as error:
            self._lose(line, str(error))

    def _next_frames(self, line: _Line) -> list[Frame] | None:
        """What to send now; waits for something. None at the end of the stream."""
        with self._lock:
            while True:
                if self._lines.get(line.number) is not line:
                    raise LinkBroken("the stream was replaced")
                if line.finished:
                    return None
                now_s = time.monotonic()
                frames, wait_s = self._collect(line, now_s)
                if frames:
                    line.spoke_s = now_s
                    self.sent_bytes += sum(HEADER.size + frame.size for frame in frames)
                    return frames
                line.waiting = True
                self._lock.wait(wait_s)
                line.waiting = False

    def _collect(self, line: _Line, now_s: float) -> tuple[list[Frame], float]:
        """The frames for a stream and, if there are none, how long to wait for some."""
        carries = line.number in self._carry
        limited_s = 0.0 if self._closed else self._meter.wait_s(now_s)
        frames = self.core.take_out(
            line.number, TAKE_BYTES, data=(carries or self._closed) and not limited_s
        )
        if frames:
            self._meter.spend(sum(frame.size for frame in frames), now_s)
            self._lock.notify_all()  # there is room for more
        waits_s = line.spoke_s + HEARTBEAT_S - now_s
        if self._ack_at_s is not None:
            ack_s = self._ack_at_s - now_s
            if ack_s <= 0:
                waits_s = 0.0
            elif self._is_timekeeper(line):
                waits_s = min(waits_s, ack_s)
        ends = not frames and (self._closed or line.retiring or line.ended)
        if waits_s <= 0 or ends:
            # Repeating the last acknowledgement is the sign of life.
            frames.append(self.core.ack().frame())
            self._ack_at_s, self._ack_bytes = None, 0
        if ends:
            line.finished = True
            if self._closed:
                frames.append(Frame(Kind.GOODBYE, self.core.last))
        if limited_s and carries and self.core.waits(line.number):
            waits_s = min(waits_s, limited_s)
        return frames, max(waits_s, 0.0)

    def _is_timekeeper(self, line: _Line) -> bool:
        """Of the senders that wait only one needs to wake up when an acknowledgement is due."""
        return next((other for other in self._lines.values() if other.waiting), line) is line

    def _part(self, line: _Line) -> None:
        """Everything was said on a stream. Closed at once, it may lose what is not yet read."""
        with self._lock:
            if self._closed:
                self._lock.wait_for(
                    lambda: self._parted or self._lines.get(line.number) is not line, LINGER_S
                )
            elif not line.ended:
                return  # the receiver closes it when the peer has ended it too
        self._lose(line, "it ended")

    # Receiving, one thread per stream.

    def _receive_on(self, line: _Line) -> None:
        try:
            while (frame := read_frame(line.stream, line.hear)) is not None:
                self._take_frame(line, frame)
                if frame.kind is Kind.GOODBYE:
                    return
            with self._lock:
                line.ended = True
                # What was dialled ends when it is no longer wanted, or else it is a break.
                line.retiring = line.retiring or self.dial is None
                over = line.finished or not line.retiring
                self._lock.notify_all()
            if over:
                self._lose(line, "the peer ended the stream")
        except ProtocolError as error:
            log.error("session %s: the peer broke the protocol: %s", self.session, error)
            self.on_broken(f"the peer broke the protocol: {error}")  # it would do so again
            self._lose(line, str(error))
        except LinkBroken as error:
            self._lose(line, str(error))

    def _take_frame(self, line: _Line, frame: Frame) -> None:
        with self._lock:
            if self._lines.get(line.number) is not line:
                raise LinkBroken("the stream was replaced")
            self.received_bytes += HEADER.size + frame.size
            if frame.kind is Kind.ACK:
                self.core.acknowledged(parse_ack(frame))
                self._lock.notify_all()
                return
            if frame.kind is Kind.GOODBYE:
                self._peer_last = frame.sequence
            elif frame.kind not in NUMBERED:
                raise ProtocolError(f"a {frame.kind.name} frame in the middle of a link")
            else:
                self._hand_on(self.core.received(frame))
            if self._peer_last is not None and self.core.arrived >= self._peer_last:
                self._parted = True
                self.close()

    def _hand_on(self, frames: Sequence[Frame]) -> None:
        # Under the lock, since the receivers of several streams are at work.
        for frame in frames:
            if frame.kind in BULK:
                if (batch := self._assembly.add(frame)) is not None:
                    self._inbox.put(batch)
                continue
            if self.core.taken(frame.sequence):
                self._acknowledge(frame.size)
            self.on_message(bytes(frame.payload))
        self._acknowledge(0, ARRIVAL_DELAY_S)

    # Dialling, one thread for each stream that is wanted; it then receives.

    def _start_slot(self, slot: int) -> None:
        with self._lock:
            key = (self._generation, slot)
            if key in self._slots:
                return
            self._slots.add(key)
        self._spawn(lambda: self._fill_slot(key), "dial")

    def _fill_slot(self, key: tuple[int, int]) -> None:
        slot = key[1]
        attempt = replaces = 0
        reported_s = time.monotonic()
        try:
            while self._wanted(key):
                try:
                    line = self._dial_once(key, replaces)
                except _Unanswered:
                    continue
                except (LinkBroken, ProtocolError) as error:
                    if slot == 0:
                        reported_s = self._report(error, reported_s)
                    with self._lock:
                        pause_s = BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)]
                        self._lock.wait_for(lambda: self._closed, pause_s)
                    attempt += 1
                    continue
                attempt, replaces = 0, line.number
                self._receive_on(line)
                reported_s = time.monotonic()
        finally:
            with self._lock:
                self._slots.discard(key)

    def _wanted(self, key: tuple[int, int]) -> bool:
        """Whether a slot is to dial. All but the first wait until it is known that the peer knows
        the link."""
        generation, slot = key
        with self._lock:

            def current() -> bool:
                wanted = slot < max(self._steer.streams, 1) and generation == self._generation
                return wanted and not self._closed

            def may() -> bool:
                known = slot == 0 or self._connected.is_set()
                parting = self._peer_last is not None and self._lines
                return known and not parting

            self._lock.wait_for(lambda: not current() or may())
            return current()

    def _report(self, error: Exception, since_s: float) -> float:
        """Say that the link cannot be mended, if it is time to; since when it is broken."""
        now_s = time.monotonic()
        if self.connected:
            return now_s
        if now_s - since_s > self.timeout_s or not getattr(error, "mendable", True):
            self.on_broken(str(error))
            return now_s
        return since_s

    def _dial_once(self, key: tuple[int, int], replaces: int) -> _Line:
        with self._lock:
            dial, core = self.dial, self.core
            self._line_count += 1
            number = self._line_count
        assert dial is not None
        stream = dial()
        line = _Line(number, key[1], key[0], stream, getattr(stream, "gauge", None))
        # A path that falls silent in the middle of the greeting must not hold us up.
        watchdog = threading.Timer(DEAD_AFTER_S, stream.close)
        watchdog.daemon = True
        watchdog.start()
        answer = None
        try:
            with self._lock:
                proposal = self._proposal
                hello = core.greeting(stream=number, replaces=replaces, version=proposal)
            stream.send([hello.head(), hello.payload])
            answer = read_frame(stream)
            if answer is None or answer.kind is not Kind.WELCOME:
                raise ProtocolError("the peer answered a greeting with something else")
            welcome = parse_greeting(answer.payload)
            self._meet(core, welcome, proposal)
            self._adopt(line, welcome)
        except (LinkBroken, ProtocolError) as error:
            stream.close()
            if answer is None and self._propose_older(proposal):
                raise _Unanswered(str(error)) from error
            raise
        finally:
            watchdog.cancel()
        line.hear()
        return line

    def _propose_older(self, proposal: int) -> bool:
        """After a proposal that was not answered: whether an older one is to be made at once.

        A peer of version 2 closes the stream on what it does not know, as a broken path does; if
        it was that, the newest is proposed again next time.
        """
        with self._lock:
            older = proposal > OLDEST
            self._proposal = OLDEST if older else self.version
            return older

    def _meet(self, core: LinkCore, welcome: Greeting, proposal: int) -> None:
        """Raises: LinkBroken if the peer has forgotten the link; a new one is begun then."""
        with self._lock:
            if self.core is not core:
                raise LinkBroken("the link has begun anew")
            agreed = core.version if self._met and welcome.known else proposal
            if welcome.version > agreed:
                raise ProtocolError(
                    f"the peer chose version {welcome.version}, and {agreed} was proposed"
                )
            core.version = self._proposal = welcome.version
            forgotten = self._met and not welcome.known
            self._met = not forgotten
            lines = list(self._lines.values()) if forgotten else []
            if forgotten:
                self.core = LinkCore(
                    secrets.token_bytes(16), self.session, self.window, self.version
                )
                self._proposal = self.version
                self._assembly = Assembly()
                self._ack_at_s, self._ack_bytes = None, 0
                self._peer_last = None
                self._lines.clear()
                self._choose_carriers()
                self._connected.clear()
                self._lock.notify_all()
        for line in lines:
            line.stream.close()
        if forgotten:
            self.on_reset()
            raise LinkBroken("the peer has forgotten the link")

    # Keeping: one thread that measures, steers, and finds what is dead.

    def _keep(self) -> None:
        reported_s = time.monotonic()
        while not (self._closed and not self._lines):
            wait_s = self._keep_wait_s(reported_s)
            due_s = time.monotonic() + wait_s
            self._wake.wait(wait_s)
            self._wake.clear()
            now_s = time.monotonic()
            self._end_silent(now_s, max(now_s - due_s, 0.0))
            self._steer_streams(now_s)
            with self._lock:
                self.core.settle(now_s)
                self._lock.notify_all()
                broken_s = max(reported_s, self._broken_since_s)
                lost = not self._lines and not self._closed and self.dial is None
            if lost and now_s - broken_s >= self.timeout_s:
                reported_s = now_s
                self.on_broken(f"the peer did not come back within {self.timeout_s:g} s")

    def _keep_wait_s(self, reported_s: float) -> float:
        now_s = time.monotonic()
        with self._lock:
            wait_s = HEARTBEAT_S / 2
            busy = self.core.outstanding > 0 or self._steer.unsent_bytes is None
            if self._lines and self.steering is not None and busy:
                wait_s = min(wait_s, STEER_EVERY_S)
            due_s = self.core.settle(now_s)
            if due_s is not None and self._lines:
                wait_s = min(wait_s, due_s - now_s)
            if not self._lines and self.dial is None:
                broken_s = max(reported_s, self._broken_since_s)
                wait_s = min(wait_s, broken_s + self.timeout_s - now_s)
        return max(wait_s, 0.001)

    def _end_silent(self, now_s: float, late_s: float) -> None:
        with self._lock:
            if late_s > HEARTBEAT_S:
                # This host stood still: nobody here can have heard anything.
                for line in self._lines.values():
                    line.heard_s += late_s
            silent = [
                line for line in self._lines.values() if now_s - line.heard_s > _dead_after_s(line)
            ]
        for line in silent:
            self._lose(line, "the peer has been silent for too long")

    def _steer_streams(self, now_s: float) -> None:
        with self._lock:
            lines = [line for line in self._lines.values() if line.number in self._carry]
            backlog = self.core.unsent_bytes > 0
            limit = self._limit
        if self.steering is None and limit is None and all(line.pace is None for line in lines):
            return
        for line in lines:
            line.reading = _read(line)
        readings = [line.reading for line in lines if line.reading is not None]
        if self.steering is not None:
            try:
                self._follow(self.steering.decide(now_s, readings, backlog))
            # The boundary of a provider: without this thread nobody would find what is dead.
            except Exception:
                log.exception("session %s: its steering failed; the last word holds", self.session)
                self.steering = None
        self._pace(lines, limit)

    def _follow(self, steer: Steer) -> None:
        with self._lock:
            more = self._closed or self.dial is None or not self._connected.is_set()
            slots = () if more else range(1, min(steer.streams, STREAMS_MAX))
            changed = steer != self._steer
            self._steer = steer
            if changed:
                self._choose_carriers()
                self._set_rate()
        for slot in slots:
            self._start_slot(slot)

    def _pace(self, lines: Sequence[_Line], limit: float | None) -> None:
        # A little more than its part, since it is the link as a whole that is limited.
        share = None if limit is None else int(1.2 * limit / max(len(lines), 1))
        pace = min((rate for rate in (share, self._steer.pace) if rate is not None), default=None)
        for line in lines:
            if line.gauge is not None and _differs(line.pace, pace):
                with contextlib.suppress(LinkBroken):
                    line.gauge.pace(pace)
                    line.pace = pace


def _read(line: _Line) -> PathReading | None:
    if line.gauge is None:
        return None
    try:
        return evolve(line.gauge.read(), stream=line.number)
    except LinkBroken:
        return None  # whoever uses the stream finds out


def _dead_after_s(line: _Line) -> float:
    rtt_s = line.reading.rtt_s if line.reading is not None else 0.0
    return max(DEAD_AFTER_S, DEAD_AFTER_ROUND_TRIPS * rtt_s)


def _differs(old: int | None, new: int | None) -> bool:
    """Whether a pace is worth telling."""
    if old is None or new is None:
        return old is not new
    return abs(old - new) > old / 200
