"""The link on streams: order, back-pressure, cut and mend, restart, end; and no thread left."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
from attrs import define, evolve, field
from novacron import Buffer, Channel, Identity, SecureStream, TransportError
from novacron_dwcp import LinkBroken, PathReading, ProtocolError, Steer, Steering
from novacron_dwcp import driver as link_module
from novacron_dwcp.driver import Link, read_frame
from novacron_dwcp.link import (
    HEADER,
    OLDEST,
    VERSION,
    Frame,
    Greeting,
    Kind,
    LinkCore,
    parse_greeting,
)
from novacron_testkit import FakeWire

DEADLINE_S = 20
WINDOW = 1 << 20


class Trusted:
    """A stream whose peer is taken for granted: the sealing is another plugin's business."""

    peer = Identity(node="peer", trust_domain="test", fingerprint="00")
    channel = Channel(protocol="none", cipher="none", key_exchange="none")


@define(eq=False)
class MemorySecure(Trusted):
    """One end of a `FakeWire`."""

    wire: FakeWire
    end: str

    def _end(self) -> SecureStream:
        stream: SecureStream = getattr(self.wire, self.end)
        return stream

    def send(self, buffers: Sequence[Buffer]) -> None:
        self._end().send(buffers)

    def receive_into(self, buffer: memoryview) -> int:
        return self._end().receive_into(buffer)

    def finish(self) -> None:
        self._end().finish()

    def close(self) -> None:
        self._end().close()

    @property
    def peer_address(self) -> str:
        return self._end().peer_address


class SocketSecure(Trusted):
    """A plain TCP connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._closed = False

    def send(self, buffers: Sequence[Buffer]) -> None:
        try:
            for buffer in buffers:
                self._sock.sendall(buffer)
        except OSError as error:
            raise TransportError(str(error)) from error

    def receive_into(self, buffer: memoryview) -> int:
        try:
            count = self._sock.recv_into(buffer)
        except OSError as error:
            raise TransportError(str(error)) from error
        if not count and self._closed:
            raise TransportError("the stream is closed")
        return count

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    @property
    def peer_address(self) -> str:
        return "127.0.0.1"


@define(eq=False)
class End:
    """A link's callbacks, as queues that a test can wait on."""

    messages: queue.SimpleQueue[bytes] = field(factory=queue.SimpleQueue)
    resets: queue.SimpleQueue[None] = field(factory=queue.SimpleQueue)
    broken: queue.SimpleQueue[str] = field(factory=queue.SimpleQueue)

    def link(
        self, dial: Callable[[], SecureStream] | None = None, *, timeout_s: float = DEADLINE_S,
        window: int = WINDOW, steering: Steering | None = None, version: int = VERSION,
    ) -> Link:  # fmt: skip
        def reset() -> None:
            self.resets.put(None)

        return Link(
            "s1", window, timeout_s, self.messages.put, reset, self.broken.put, dial, steering,
            version,
        )  # fmt: skip

    def message(self) -> bytes:
        return self.messages.get(timeout=DEADLINE_S)


@define(eq=False)
class Fixed:
    """A steering that always decides the same, and keeps what it was told."""

    steer: Steer
    told: list[tuple[Sequence[PathReading], bool]] = field(factory=list)

    def decide(self, now_s: float, readings: Sequence[PathReading], backlog: bool) -> Steer:
        self.told.append((readings, backlog))
        return self.steer


@define(eq=False)
class Pair:
    """Two nodes: ``near`` dials, ``far`` accepts as a node does; the wires between them break."""

    capacity: int = 256 << 10
    window: int = WINDOW
    timeout_s: float = DEADLINE_S
    streams: int = 1
    near_version: int = VERSION
    far_version: int = VERSION
    here: End = field(factory=End)
    there: End = field(factory=End)
    wires: list[FakeWire] = field(factory=list)
    greets: list[threading.Thread] = field(factory=list)
    far: Link = field(init=False)
    near: Link = field(init=False)
    met: bool = False
    former: list[Link] = field(factory=list)
    on_wire: Callable[[FakeWire], None] = lambda wire: None
    reachable: bool = True
    dials: queue.SimpleQueue[None] = field(factory=queue.SimpleQueue)

    def __attrs_post_init__(self) -> None:
        self.near = self.here.link(
            self.dial,
            window=self.window,
            timeout_s=self.timeout_s,
            steering=Fixed(Steer(streams=self.streams)) if self.streams > 1 else None,
            version=self.near_version,
        )
        self.restart()

    def restart(self) -> None:
        """The accepting node forgets everything, as after ``kill -9``."""
        self.far = self.there.link(
            window=self.window, timeout_s=self.timeout_s, version=self.far_version
        )
        self.met = False

    def dial(self) -> SecureStream:
        self.dials.put(None)
        if not self.reachable:
            raise TransportError("nobody listens")
        wire = FakeWire(self.capacity)
        self.wires.append(wire)
        self.on_wire(wire)
        thread = threading.Thread(target=self.greet, args=(wire, self.far))
        self.greets = [*self.greets, thread]
        thread.start()
        return MemorySecure(wire, "left")

    def greet(self, wire: FakeWire, far: Link) -> None:
        stream = MemorySecure(wire, "right")
        try:
            frame = read_frame(stream)
            assert frame is not None
            hello = parse_greeting(frame.payload, self.far_version)
            # As a node does: the link is known from its first greeting on, and by its name.
            if self.met and hello.link != far.core.link:
                self.former.append(far)
                self.restart()
                far = self.far
            known, self.met = self.met, True
            if known:
                far.attach(stream, hello)
            else:
                far.start_accepted(stream, hello)
        except (LinkBroken, ProtocolError):
            stream.close()

    def start(self) -> None:
        self.near.start()
        self.wait_connected()

    def wait_connected(self) -> None:
        assert self.near.wait_connected(DEADLINE_S)
        assert self.far.wait_connected(DEADLINE_S)

    def wait_for_streams(self, count: int) -> None:
        def all_there(link: Link) -> bool:
            return len(link._lines) == count

        for link in (self.near, self.far):
            with link._lock:
                assert link._lock.wait_for(partial(all_there, link), DEADLINE_S)

    def cut(self) -> None:
        self.wires[-1].cut()

    def end(self) -> None:
        links = [self.near, self.far, *self.former]
        for link in links:
            link.close()
        for wire in self.wires:
            wire.close()
        for link in links:
            link.join()
        for thread in self.greets:
            thread.join(DEADLINE_S)


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(DEADLINE_S)
    assert not [thread.name for thread in left if thread.is_alive()]


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.end()


def take(link: Link, count: int) -> list[bytes]:
    """Take that many batches as the inward pump does."""
    got = []
    for _ in range(count):
        frame = link.receive_data()
        assert frame is not None
        got.append(bytes(frame.payload))
        link.taken(frame)
    return got


def wait_until_acknowledged(link: Link) -> None:
    with link._lock:
        assert link._lock.wait_for(lambda: not link.core.outstanding, DEADLINE_S)


def test_messages_and_data_arrive_in_the_order_in_which_they_were_sent(pair: Pair) -> None:
    pair.start()
    for number in range(50):
        pair.near.send_message(b"m%d" % number)
        pair.near.send_data(b"d%d" % number)
    assert [pair.there.message() for _ in range(50)] == [b"m%d" % n for n in range(50)]
    assert take(pair.far, 50) == [b"d%d" % n for n in range(50)]


def test_both_sides_may_speak_at_once(pair: Pair) -> None:
    pair.start()
    pair.near.send_message(b"to the far side")
    pair.far.send_message(b"to the near side")
    pair.far.send_data(b"data")
    assert pair.there.message() == b"to the far side"
    assert pair.here.message() == b"to the near side"
    assert take(pair.near, 1) == [b"data"]


def test_what_is_sent_before_the_first_connection_is_not_lost(pair: Pair) -> None:
    pair.near.send_message(b"early")
    pair.start()
    assert pair.there.message() == b"early"


def test_the_bytes_on_the_wire_are_counted_on_both_sides(pair: Pair) -> None:
    pair.start()
    pair.near.send_data(bytes(1000))
    take(pair.far, 1)
    wait_until_acknowledged(pair.near)
    assert pair.near.sent_bytes >= 1000 + HEADER.size
    assert pair.far.received_bytes >= 1000 + HEADER.size


def test_the_sender_blocks_until_the_other_side_has_taken_a_batch_and_not_merely_got_it() -> None:
    pair = Pair(window=1 << 10)
    pair.start()
    sent: queue.SimpleQueue[int] = queue.SimpleQueue()

    def send() -> None:
        for number in range(4):
            pair.near.send_data(bytes([number]) * (1 << 10))
            sent.put(number)

    sender = threading.Thread(target=send)
    sender.start()
    assert sent.get(timeout=DEADLINE_S) == 0
    for number in range(4):
        frame = pair.far.receive_data()  # it is here, and not taken
        assert frame is not None
        pair.near.send_message(b"%d" % number)
        assert pair.there.message() == b"%d" % number  # so the link has moved on, and yet
        assert sent.empty()
        assert pair.near.core._kept_bytes == 1 << 10
        pair.far.taken(frame)
        if number < 3:
            assert sent.get(timeout=DEADLINE_S) == number + 1
    sender.join(DEADLINE_S)
    wait_until_acknowledged(pair.near)
    assert pair.near.wait_s > 0
    pair.end()


def test_a_sender_that_waits_for_room_is_released_when_the_link_closes() -> None:
    pair = Pair(window=10)
    pair.start()
    pair.near.send_data(bytes(10))
    failed: queue.SimpleQueue[LinkBroken] = queue.SimpleQueue()

    def send() -> None:
        try:
            pair.near.send_data(bytes(10))
        except LinkBroken as error:
            failed.put(error)

    sender = threading.Thread(target=send)
    sender.start()
    pair.near.close()
    assert "closed" in str(failed.get(timeout=DEADLINE_S))
    sender.join(DEADLINE_S)
    pair.end()


def test_a_cut_link_is_mended_and_everything_arrives_exactly_once_and_in_order() -> None:
    pair = Pair(capacity=4096)
    pair.start()
    count = 200
    got: list[bytes] = []
    cuts = {20, 60, 61, 150}

    def receive() -> None:
        while len(got) < count:
            got.extend(take(pair.far, 1))
            if len(got) in cuts:
                pair.cut()

    receiver = threading.Thread(target=receive)
    receiver.start()
    for number in range(count):
        pair.near.send_message(b"m%d" % number)
        pair.near.send_data(b"d%d" % number + bytes(1000))
    receiver.join(DEADLINE_S)
    assert got == [b"d%d" % n + bytes(1000) for n in range(count)]
    assert [pair.there.message() for _ in range(count)] == [b"m%d" % n for n in range(count)]
    assert len(pair.wires) > 1
    assert pair.here.resets.empty()
    wait_until_acknowledged(pair.near)
    pair.end()


@pytest.mark.parametrize("after", range(0, 400, 7))
def test_a_stream_cut_at_any_byte_loses_and_repeats_nothing(after: int) -> None:
    pair = Pair()

    def cut_the_first(wire: FakeWire) -> None:
        if len(pair.wires) == 1:
            wire.to_right.cut_after = after

    pair.on_wire = cut_the_first
    pair.near.start()
    for number in range(5):
        pair.near.send_message(b"m%d" % number)
        pair.near.send_data(b"d%d" % number + bytes(30))
    assert take(pair.far, 5) == [b"d%d" % n + bytes(30) for n in range(5)]
    assert [pair.there.message() for _ in range(5)] == [b"m%d" % n for n in range(5)]
    wait_until_acknowledged(pair.near)
    assert pair.there.messages.empty()
    pair.end()


def test_what_is_said_while_the_link_is_broken_arrives_when_it_is_mended(pair: Pair) -> None:
    pair.start()
    pair.reachable = False
    pair.cut()
    pair.dials.get(timeout=DEADLINE_S)  # the first one
    pair.dials.get(timeout=DEADLINE_S)  # so the cut has been noticed here
    pair.near.send_message(b"from near")
    pair.far.send_message(b"from far")
    pair.reachable = True
    assert pair.there.message() == b"from near"
    assert pair.here.message() == b"from far"


def test_a_message_sent_in_the_moment_of_mending_is_not_lost(pair: Pair) -> None:
    """The accepting side says WELCOME, and before that is out somebody sends a message."""
    pair.start()
    pair.near.send_message(b"one")
    assert pair.there.message() == b"one"
    welcomes: queue.SimpleQueue[None] = queue.SimpleQueue()

    def speak_before_the_welcome(wire: FakeWire) -> None:
        put = wire.right.send

        def send(buffers: Sequence[Buffer]) -> None:
            if buffers[0][4] == Kind.WELCOME:
                pair.far.send_message(b"two")
                welcomes.put(None)
            put(buffers)

        wire.right.send = send  # type: ignore[method-assign]

    pair.on_wire = speak_before_the_welcome
    pair.cut()
    welcomes.get(timeout=DEADLINE_S)
    pair.wait_connected()
    pair.far.send_message(b"three")
    assert [pair.here.message(), pair.here.message()] == [b"two", b"three"]
    assert pair.here.broken.empty()


def test_a_restarted_peer_is_noticed_and_the_link_begins_anew(pair: Pair) -> None:
    pair.start()
    pair.near.send_message(b"before")
    assert pair.there.message() == b"before"
    wait_until_acknowledged(pair.near)
    name = pair.near.core.link
    former = pair.far
    pair.restart()
    pair.cut()
    pair.here.resets.get(timeout=DEADLINE_S)
    pair.near.send_message(b"after")
    # The first link of the restarted node answered "unknown"; the dialler came back with a new
    # name, which a node would know for a new link.
    assert pair.there.message() == b"after"
    assert pair.near.core.link != name
    former.close()
    former.join()


def test_a_peer_that_does_not_come_back_is_reported_again_and_again_by_the_accepting_side() -> None:
    pair = Pair(timeout_s=0.05)
    pair.start()
    pair.reachable = False
    pair.cut()
    for _ in range(3):
        assert "did not come back" in pair.there.broken.get(timeout=DEADLINE_S)
    assert not pair.far.connected
    pair.end()


def test_a_peer_that_cannot_be_dialled_is_reported_again_and_again_and_may_still_come() -> None:
    pair = Pair(timeout_s=0.05)
    pair.reachable = False
    pair.near.start()
    for _ in range(3):
        assert "nobody listens" in pair.here.broken.get(timeout=DEADLINE_S)
    pair.reachable = True
    pair.near.send_message(b"at last")
    assert pair.there.message() == b"at last"
    pair.end()


def test_closing_sends_what_is_queued_and_ends_the_other_side(pair: Pair) -> None:
    pair.start()
    for number in range(100):
        pair.near.send_message(b"m%d" % number)
    pair.near.send_data(b"last")
    pair.near.close()
    pair.near.join()
    assert [pair.there.message() for _ in range(100)] == [b"m%d" % n for n in range(100)]
    assert take(pair.far, 1) == [b"last"]
    assert pair.far.receive_data() is None
    pair.far.join()
    assert pair.far.closed
    assert pair.there.broken.empty()
    assert pair.here.broken.empty()


def test_closing_twice_is_once_and_nothing_is_sent_afterwards(pair: Pair) -> None:
    pair.start()
    pair.near.close()
    pair.near.close()
    pair.near.join()
    pair.near.send_message(b"too late")
    assert not pair.near.core.outstanding
    with pytest.raises(LinkBroken, match="closed"):
        pair.near.send_data(b"too late")
    assert pair.near.receive_data() is None


def test_a_link_that_was_never_started_can_be_closed() -> None:
    link = End().link()
    link.close()
    link.join()
    assert link.receive_data() is None


def test_a_link_closed_while_it_is_dialling_lets_go_of_the_stream_it_gets() -> None:
    pair = Pair()
    dialling, go_on = threading.Event(), threading.Event()
    dial = pair.dial

    def slow_dial() -> SecureStream:
        dialling.set()
        assert go_on.wait(DEADLINE_S)
        return dial()

    pair.near.dial = slow_dial
    pair.near.start()
    assert dialling.wait(DEADLINE_S)
    threads = list(pair.near._threads)
    pair.near.close()
    keeper = next(thread for thread in threads if "keep" in thread.name)
    keeper.join(DEADLINE_S)
    go_on.set()
    began = time.monotonic()
    for thread in threads:
        thread.join(DEADLINE_S)
    # Long before the far side would take it for dead.
    assert time.monotonic() - began < link_module.DEAD_AFTER_S / 2
    pair.end()


def test_end_data_ends_the_reader_and_leaves_the_link_alive(pair: Pair) -> None:
    pair.start()
    pair.far.end_data()
    assert pair.far.receive_data() is None
    pair.near.send_message(b"still here")
    assert pair.there.message() == b"still here"


def test_a_silent_peer_is_taken_for_dead_and_dialled_again(
    monkeypatch: pytest.MonkeyPatch, pair: Pair
) -> None:
    monkeypatch.setattr(link_module, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(link_module, "DEAD_AFTER_S", 0.1)
    pair.start()
    pair.wires[-1].to_left.end_after = 1 << 40  # nothing; and now the far side says no word more
    far_send = pair.wires[-1].right
    far_send.send = lambda buffers: None  # type: ignore[method-assign]
    pair.dials.get(timeout=DEADLINE_S)
    pair.dials.get(timeout=DEADLINE_S)
    pair.wait_connected()
    pair.near.send_message(b"over the new stream")
    assert pair.there.message() == b"over the new stream"


# Several streams.


@pytest.fixture
def striped() -> Iterator[Pair]:
    made = Pair(streams=4, capacity=8192)
    made.start()
    made.wait_for_streams(4)
    yield made
    made.end()


def exchange(pair: Pair, count: int, during: Callable[[int], None] = lambda number: None) -> None:
    """Send messages and batches of many sizes, and see that all arrive in order."""
    got: list[bytes] = []
    sizes = [(number * 7919) % 9000 for number in range(count)]

    def receive() -> None:
        for number in range(count):
            during(number)
            got.extend(take(pair.far, 1))

    receiver = threading.Thread(target=receive)
    receiver.start()
    for number, size in enumerate(sizes):
        pair.near.send_data(b"d%d:" % number + bytes(size))
        if number % 10 == 0:
            pair.near.send_message(b"m%d" % number)
    receiver.join(DEADLINE_S)
    assert got == [b"d%d:" % number + bytes(size) for number, size in enumerate(sizes)]
    messages = [pair.there.message() for _ in range(0, count, 10)]
    assert messages == [b"m%d" % number for number in range(0, count, 10)]
    wait_until_acknowledged(pair.near)
    assert pair.there.messages.empty()


def test_frames_are_striped_over_all_streams_and_arrive_in_order(striped: Pair) -> None:
    before = [wire.to_right.sent for wire in striped.wires]
    exchange(striped, 200)
    carried = [wire.to_right.sent - was for wire, was in zip(striped.wires, before, strict=True)]
    assert all(count > 50_000 for count in carried)
    assert striped.near.core.resent_bytes == 0


def test_streams_that_are_cut_one_by_one_are_replaced_and_nothing_is_lost(striped: Pair) -> None:
    exchange(striped, 200, lambda n: striped.wires[n // 20 % 4].cut() if n % 20 == 10 else None)
    assert len(striped.wires) > 4
    assert striped.here.resets.empty()
    striped.wait_for_streams(4)


def test_all_streams_cut_at_once_are_replaced_and_nothing_is_lost(striped: Pair) -> None:
    def cut_all(number: int) -> None:
        if number in (30, 90):
            for wire in list(striped.wires):
                wire.cut()

    exchange(striped, 150, cut_all)
    assert striped.here.resets.empty()
    striped.wait_for_streams(4)


def test_a_stream_that_falls_silent_does_not_hold_up_the_others_for_good(
    monkeypatch: pytest.MonkeyPatch, striped: Pair
) -> None:
    monkeypatch.setattr(link_module, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(link_module, "DEAD_AFTER_S", 0.2)
    striped.wires[1].right.send = lambda buffers: None  # type: ignore[method-assign]
    for _ in range(5):  # four, and the one that takes the place of the silent one
        striped.dials.get(timeout=DEADLINE_S)
    exchange(striped, 50)
    striped.wait_for_streams(4)


def test_a_restarted_peer_is_noticed_over_any_stream_and_all_begin_anew(striped: Pair) -> None:
    striped.near.send_message(b"before")
    assert striped.there.message() == b"before"
    wait_until_acknowledged(striped.near)
    former = striped.far
    striped.restart()
    for wire in list(striped.wires):
        wire.cut()
    striped.here.resets.get(timeout=DEADLINE_S)
    striped.near.send_message(b"after")
    assert striped.there.message() == b"after"
    former.close()
    former.join()


def test_closing_a_link_of_several_streams_delivers_all_that_was_queued(striped: Pair) -> None:
    for number in range(60):
        striped.near.send_data(b"%d:" % number + bytes(5000))
    striped.near.close()
    assert take(striped.far, 60) == [b"%d:" % number + bytes(5000) for number in range(60)]
    assert striped.far.receive_data() is None
    striped.far.join()
    striped.near.join()
    assert striped.there.broken.empty()
    assert striped.here.broken.empty()


def test_a_link_goes_over_to_another_dialler_without_losing_or_repeating_a_frame(
    striped: Pair,
) -> None:
    moved = threading.Event()

    def dial() -> SecureStream:
        moved.set()
        return striped.dial()

    old = list(striped.wires)

    def redial(number: int) -> None:
        if number == 40:
            striped.near.redial(dial)

    exchange(striped, 150, redial)
    assert moved.is_set()
    with striped.near._lock:
        assert striped.near._lock.wait_for(
            lambda: [line.generation for line in striped.near._lines.values()] == [1] * 4,
            DEADLINE_S,
        )
    striped.wait_for_streams(4)
    assert len(striped.wires) - len(old) >= 4
    assert striped.here.broken.empty()


def test_a_dialler_that_reaches_nobody_leaves_the_old_streams_at_work(pair: Pair) -> None:
    def nobody() -> SecureStream:
        raise TransportError("nobody listens")

    pair.start()
    pair.near.redial(nobody)
    exchange(pair, 30)
    assert pair.here.broken.empty()


def test_a_limit_is_kept_and_can_be_changed_while_the_link_runs(pair: Pair) -> None:
    pair.start()
    pair.near.limit(2_000_000)
    began = time.monotonic()
    for _ in range(4):
        pair.near.send_data(bytes(150_000))
    take(pair.far, 4)
    assert time.monotonic() - began >= 3 * 150_000 / 2_000_000 * 0.9
    pair.near.limit(1)
    pair.near.send_data(b"x" * 10_000)
    pair.near.send_data(b"waits for long")
    pair.near.limit(None)
    assert take(pair.far, 2) == [b"x" * 10_000, b"waits for long"]


def test_a_sender_is_held_back_while_more_waits_than_the_steering_allows() -> None:
    pair = Pair()
    pair.near.steering = Fixed(Steer(streams=1, unsent_bytes=1000))
    pair.start()
    with pair.near._lock:
        assert pair.near._lock.wait_for(lambda: pair.near._steer.unsent_bytes == 1000, DEADLINE_S)
    pair.near.limit(1)  # so that nothing leaves
    pair.near.send_data(bytes(2000))  # but the first
    pair.near.send_data(bytes(2000))
    sent = threading.Event()

    def send() -> None:
        pair.near.send_data(b"last")
        sent.set()

    sender = threading.Thread(target=send)
    sender.start()
    assert pair.near.core.unsent_bytes == 2000
    assert not sent.is_set()
    pair.near.limit(None)
    assert sent.wait(DEADLINE_S)
    assert [len(each) for each in take(pair.far, 3)] == [2000, 2000, 4]
    sender.join(DEADLINE_S)
    pair.end()


@define(eq=False)
class Gauged(MemorySecure):
    """A stream that says what it was told to, and keeps the pace that it was given."""

    reading: PathReading = field(
        factory=lambda: PathReading(
            at_s=0.0,
            rtt_s=0.08,
            min_rtt_s=0.07,
            rate_bytes_per_s=1e6,
            sent_bytes=1000,
            resent_bytes=10,
            unsent_bytes=5,
            reordered=3,
        )
    )
    paces: queue.SimpleQueue[int | None] = field(factory=queue.SimpleQueue)

    @property
    def gauge(self) -> Gauged:
        return self

    def read(self) -> PathReading:
        return self.reading

    def pace(self, bytes_per_s: int | None) -> None:
        self.paces.put(bytes_per_s)


def test_the_steering_is_told_what_the_streams_measure_and_its_pace_reaches_them() -> None:
    pair = Pair()
    made: list[Gauged] = []
    dial = pair.dial

    def gauged() -> SecureStream:
        dial()
        made.append(Gauged(pair.wires[-1], "left"))
        return made[-1]

    pair.near.dial = gauged
    steering = Fixed(Steer(streams=1, pace=5000))
    pair.near.steering = steering
    pair.start()
    assert made[0].paces.get(timeout=DEADLINE_S) == 5000
    assert ([evolve(made[0].reading, stream=1)], False) in steering.told
    measure = pair.near.measure()
    assert (measure.rtt_s, measure.min_rtt_s, measure.rate_bytes_per_s) == (0.08, 0.07, 1e6)
    assert (measure.loss, measure.reordered, measure.streams) == (0.01, 3, 1)
    pair.near.limit(1000)
    assert made[0].paces.get(timeout=DEADLINE_S) == 1200
    pair.end()


def test_a_steering_that_fails_is_not_asked_again_and_the_link_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link_module, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(link_module, "DEAD_AFTER_S", 0.2)
    pair = Pair()
    asked: queue.SimpleQueue[float] = queue.SimpleQueue()

    class Failing:
        def decide(self, now_s: float, readings: Sequence[PathReading], backlog: bool) -> Steer:
            asked.put(now_s)
            raise ZeroDivisionError("no reading")

    pair.near.steering = Failing()
    pair.start()
    asked.get(timeout=DEADLINE_S)
    # Silence is still found out about, and the stream replaced: the thread that keeps it lives.
    pair.wires[0].right.send = lambda buffers: None  # type: ignore[method-assign]
    pair.dials.get(timeout=DEADLINE_S)
    pair.dials.get(timeout=DEADLINE_S)
    assert asked.empty()
    assert "its steering failed" in caplog.text
    pair.end()


def test_a_link_without_gauges_measures_what_it_knows_itself(pair: Pair) -> None:
    pair.start()
    pair.near.send_data(bytes(500))
    frame = pair.far.receive_data()
    assert frame is not None
    measure = pair.near.measure()
    assert (measure.streams, measure.unacknowledged_bytes, measure.rtt_s) == (1, 500, 0.0)
    pair.far.taken(frame)


# A peer that does not keep the rules, spoken to frame by frame.


@define(eq=False)
class Rogue:
    """The accepting side, played by the test; its link speaks over real TCP."""

    end: End = field(factory=End)
    listener: socket.socket = field(factory=lambda: socket.create_server(("127.0.0.1", 0)))
    link: Link = field(init=False)
    hellos: list[Greeting] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.listener.settimeout(DEADLINE_S)
        self.link = self.end.link(self._dial)

    def _dial(self) -> SecureStream:
        try:
            sock = socket.create_connection(self.listener.getsockname(), DEADLINE_S)
        except OSError as error:
            raise TransportError(str(error)) from error
        sock.settimeout(None)
        return SocketSecure(sock)

    def accept(
        self, *, known: bool = True, expects: int = 1, version: int = VERSION
    ) -> SocketSecure:
        """Take a connection, read HELLO and answer it."""
        sock, _ = self.listener.accept()
        sock.settimeout(DEADLINE_S)
        stream = SocketSecure(sock)
        frame = read_frame(stream)
        assert frame is not None
        assert frame.kind is Kind.HELLO
        hello = parse_greeting(frame.payload)
        self.hellos.append(hello)
        core = LinkCore(hello.link, hello.session, WINDOW, version)
        core._expects = expects
        welcome = core.greeting(known=known).payload
        stream.send([Frame(Kind.WELCOME, 0, welcome).head(), welcome])
        return stream

    def end_it(self, *streams: SocketSecure) -> None:
        self.link.close()
        self.listener.close()
        for stream in streams:
            stream.close()
        self.link.join()


@pytest.fixture
def rogue() -> Iterator[Rogue]:
    made = Rogue()
    made.link.start()
    yield made
    made.end_it()


HOSTILE = {
    "an unknown kind": HEADER.pack(0, 77, 1),
    "a gap that is too wide": HEADER.pack(0, Kind.MESSAGE, 1 + (1 << 16)),
    "an acknowledgement of nothing": HEADER.pack(8, Kind.ACK, 1) + bytes(7) + b"\x01",
    "an acknowledgement that says nothing": HEADER.pack(0, Kind.ACK, 0),
    "a length that is too large": HEADER.pack(1 << 31, Kind.DATA, 1),
    "a second greeting": HEADER.pack(0, Kind.HELLO, 0),
    "an acknowledgement with half a run": HEADER.pack(9, Kind.ACK, 0) + bytes(9),
}


@pytest.mark.parametrize("frame", HOSTILE.values(), ids=HOSTILE)
def test_a_peer_that_breaks_the_rules_is_reported_and_its_stream_closed(
    rogue: Rogue, frame: bytes
) -> None:
    stream = rogue.accept()
    stream.send([frame])
    assert "broke the protocol" in rogue.end.broken.get(timeout=DEADLINE_S)
    sink = memoryview(bytearray(4096))
    with contextlib.suppress(LinkBroken):
        while stream.receive_into(sink):
            pass
    stream.close()
    rogue.end_it()


def test_a_frame_that_comes_twice_is_handed_on_once(rogue: Rogue) -> None:
    stream = rogue.accept()
    for sequence in (1, 1, 2, 1, 2):
        stream.send([HEADER.pack(1, Kind.MESSAGE, sequence), b"%d" % sequence])
    stream.send([HEADER.pack(3, Kind.MESSAGE, 3), b"end"])
    assert [rogue.end.message() for _ in range(3)] == [b"1", b"2", b"end"]
    rogue.end_it(stream)


def test_after_a_break_the_dialling_side_says_what_it_expects_and_repeats_what_is_wanted(
    rogue: Rogue,
) -> None:
    stream = rogue.accept()
    stream.send([HEADER.pack(1, Kind.MESSAGE, 1), b"x"])
    assert rogue.end.message() == b"x"
    for number in (1, 2, 3):
        rogue.link.send_message(b"m%d" % number)
    stream.close()
    stream = rogue.accept(expects=2)
    assert [hello.expects for hello in rogue.hellos] == [1, 2]
    assert rogue.hellos[0].link == rogue.hellos[1].link
    got: list[tuple[int, bytes]] = []
    while len(got) < 2:
        frame = read_frame(stream)
        assert frame is not None
        if frame.kind is Kind.MESSAGE:
            got.append((frame.sequence, bytes(frame.payload)))
    assert got == [(2, b"m2"), (3, b"m3")]
    rogue.end_it(stream)


# Versions.


@pytest.mark.parametrize(
    ("near", "far"), [(VERSION, VERSION), (VERSION, OLDEST), (OLDEST, VERSION), (OLDEST, OLDEST)]
)
def test_two_nodes_speak_the_newest_version_that_both_know(near: int, far: int) -> None:
    """The one that knows version 2 alone closes the stream on anything else, as its release did."""
    pair = Pair(near_version=near, far_version=far, streams=2)
    pair.start()
    pair.wait_for_streams(2)
    assert (pair.near.core.version, pair.far.core.version) == (min(near, far),) * 2
    pair.near.send_message(b"hello")
    assert pair.there.message() == b"hello"
    pair.cut()
    pair.near.send_message(b"again")
    assert pair.there.message() == b"again"
    assert pair.near.core.version == min(near, far)
    assert pair.here.broken.empty()
    pair.end()


@pytest.mark.parametrize(("before", "after"), [(OLDEST, VERSION), (VERSION, OLDEST)])
def test_a_peer_that_was_replaced_by_another_release_is_spoken_to_in_what_that_one_knows(
    before: int, after: int
) -> None:
    pair = Pair(far_version=before)
    pair.start()
    assert pair.near.core.version == before
    old, pair.far_version = pair.far, after
    pair.restart()
    pair.cut()
    pair.here.resets.get(timeout=DEADLINE_S)
    pair.wait_connected()
    assert (pair.near.core.version, pair.far.core.version) == (after, after)
    assert pair.here.broken.empty()
    old.close()
    pair.end()
    old.join()


def test_a_peer_that_chooses_a_version_that_was_not_proposed_is_reported(rogue: Rogue) -> None:
    rogue.accept(version=VERSION + 1).close()
    rogue.link.timeout_s = 0.0
    rogue.accept(version=VERSION + 1).close()
    assert "was proposed" in rogue.end.broken.get(timeout=DEADLINE_S)


def test_nothing_of_a_forgotten_link_is_said_on_the_new_one(rogue: Rogue) -> None:
    stream = rogue.accept(known=False)
    for sequence in (1, 2):
        stream.send([HEADER.pack(1, Kind.MESSAGE, sequence), b"x"])
        assert rogue.end.message() == b"x"
    rogue.link.send_message(b"lost with the old link")
    stream.close()
    rogue.accept(known=False).close()
    rogue.end.resets.get(timeout=DEADLINE_S)
    stream = rogue.accept(known=False)
    assert rogue.hellos[-1].link != rogue.hellos[0].link
    assert rogue.hellos[-1].expects == 1
    assert rogue.link.wait_connected(DEADLINE_S)
    rogue.link.send_message(b"new")
    frame = read_frame(stream)
    while frame is not None and frame.kind is Kind.ACK:
        assert frame.sequence == 0
        frame = read_frame(stream)
    assert frame == Frame(Kind.MESSAGE, 1, bytearray(b"new"))
    rogue.end_it(stream)


def test_a_goodbye_is_the_end_and_nothing_is_dialled_again(rogue: Rogue) -> None:
    stream = rogue.accept()
    stream.send([Frame(Kind.GOODBYE, 0).head()])
    assert rogue.link.receive_data() is None
    rogue.link.join()
    assert rogue.link.closed
    assert rogue.end.broken.empty()
    rogue.end_it(stream)


# Reading frames.


def test_a_stream_that_ends_between_frames_is_an_end_and_within_one_an_error() -> None:
    whole = Frame(Kind.MESSAGE, 1, b"abc")
    data = whole.head() + b"abc"
    for cut in range(len(data) + 1):
        wire = FakeWire()
        wire.left.send([data[:cut]])
        wire.left.finish()
        stream = MemorySecure(wire, "right")
        if cut == 0:
            assert read_frame(stream) is None
        elif cut == len(data):
            assert read_frame(stream) == whole
            assert read_frame(stream) is None
        else:
            with pytest.raises(LinkBroken, match="middle of a frame"):
                read_frame(stream)


def test_a_frame_that_trickles_in_byte_by_byte_is_whole() -> None:
    frame = Frame(Kind.DATA, 1, bytes(range(40)))
    wire = FakeWire(capacity=1)
    sender = threading.Thread(target=wire.left.send, args=([frame.head(), frame.payload],))
    sender.start()
    assert read_frame(MemorySecure(wire, "right")) == frame
    sender.join(DEADLINE_S)
