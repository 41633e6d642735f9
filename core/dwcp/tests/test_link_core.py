"""The link without I/O: every numbered frame arrives exactly once and in order, over any cuts."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from novacron_dwcp import Buffer, ProtocolError
from novacron_dwcp import messages as msg
from novacron_dwcp.link import (
    FRAME_BYTES_MAX,
    GREETING_BYTES_MAX,
    HEADER,
    VERSION,
    WINDOW_BYTES_MAX,
    Frame,
    Greeting,
    Kind,
    LinkCore,
    parse_greeting,
    parse_head,
)

NAME = bytes(16)
WINDOW = 1000
LONGEST = {
    Kind.HELLO: GREETING_BYTES_MAX,
    Kind.WELCOME: GREETING_BYTES_MAX,
    Kind.MESSAGE: msg.MESSAGE_BYTES_MAX,
    Kind.DATA: FRAME_BYTES_MAX,
    Kind.ACK: 0,
    Kind.GOODBYE: 0,
}


def core(window: int = WINDOW) -> LinkCore:
    return LinkCore(NAME, "s1", window)


def greeted(window: int = WINDOW) -> LinkCore:
    """A core that has met a peer with the same window and nothing sent yet."""
    made = core(window)
    made.resume(hello(window=window))
    return made


def hello(expects: int = 1, window: int = WINDOW, **other: object) -> Greeting:
    values: dict[str, object] = {"version": VERSION, "link": NAME, "session": "s1"}
    return msgspec.convert(values | {"expects": expects, "window": window} | other, Greeting)


# Heads.


@pytest.mark.parametrize("kind", list(Kind))
def test_a_head_is_read_back_as_it_was_made(kind: Kind) -> None:
    frame = Frame(kind, 7, b"x" * min(LONGEST[kind], 5))
    assert parse_head(frame.head()) == (kind, 7, len(frame.payload))


@pytest.mark.parametrize("kind", list(Kind))
def test_the_longest_payload_of_each_kind_is_accepted_and_one_byte_more_is_refused(
    kind: Kind,
) -> None:
    assert parse_head(HEADER.pack(LONGEST[kind], kind, 1)) == (kind, 1, LONGEST[kind])
    with pytest.raises(ProtocolError, match="too long"):
        parse_head(HEADER.pack(LONGEST[kind] + 1, kind, 1))


@pytest.mark.parametrize("number", [0, 7, 8, 255])
def test_an_unknown_kind_is_refused_and_named(number: int) -> None:
    with pytest.raises(ProtocolError, match=f"kind {number}"):
        parse_head(HEADER.pack(0, number, 0))


@given(st.binary(min_size=HEADER.size, max_size=HEADER.size))
def test_any_sixteen_bytes_are_a_bounded_head_or_refused(head: bytes) -> None:
    try:
        kind, sequence, length = parse_head(head)
    except ProtocolError:
        return
    assert length <= LONGEST[kind]
    assert 0 <= sequence < 1 << 64


# Greetings.


def test_a_greeting_is_read_back_as_it_was_made() -> None:
    made = core().greeting(known=True)
    assert parse_greeting(made.payload) == hello(known=True)


def test_a_greeting_never_exceeds_its_own_limit() -> None:
    longest = LinkCore(b"\xff" * 16, "\N{SNOWMAN}" * 128, WINDOW_BYTES_MAX).greeting(known=True)
    assert len(longest.payload) <= GREETING_BYTES_MAX
    parse_head(longest.head())


def test_a_peer_of_another_version_is_refused_with_what_to_do() -> None:
    with pytest.raises(ProtocolError, match="version 2") as refused:
        parse_greeting(msgspec.msgpack.encode(hello(version=2)))
    assert "same release" in refused.value.hint


@pytest.mark.parametrize(
    "wrong",
    [{"link": b"short"}, {"link": bytes(17)}, {"session": "s" * 129}, {"expects": 0}],
    ids=str,
)
def test_a_greeting_with_impossible_values_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="impossible"):
        parse_greeting(msgspec.msgpack.encode(hello(**wrong)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x80",
        msgspec.msgpack.encode({"version": 1}),
        msgspec.msgpack.encode({**msgspec.structs.asdict(hello()), "more": 1}),
        msgspec.msgpack.encode({**msgspec.structs.asdict(hello()), "window": "much"}),
        msgspec.msgpack.encode({**msgspec.structs.asdict(hello()), "known": 1}),
        msgspec.msgpack.encode(hello()) + b"\x00",
        msgspec.msgpack.encode(hello())[:-1],
        b"\x91" * 1000,
    ],
    ids=range(10),
)
def test_what_is_no_greeting_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a greeting"):
        parse_greeting(payload)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_sound_greeting_or_refused(payload: bytes) -> None:
    try:
        greeting = parse_greeting(payload)
    except ProtocolError:
        return
    assert len(greeting.link) == 16
    assert greeting.expects >= 1


# Sending.


def test_messages_and_data_share_one_count_from_one() -> None:
    sender = greeted()
    assert [
        sender.number(kind, b"x").sequence for kind in (Kind.MESSAGE, Kind.DATA, Kind.MESSAGE)
    ] == [1, 2, 3]


def test_there_is_room_for_one_frame_whatever_its_size_and_then_for_a_window() -> None:
    sender = greeted(window=100)
    assert sender.room(100_000)
    sender.number(Kind.DATA, bytes(60))
    assert sender.room(40)
    assert not sender.room(41)


def test_messages_take_no_room() -> None:
    sender = greeted(window=100)
    sender.number(Kind.MESSAGE, bytes(5000))
    assert sender.room(5000)


def test_the_smaller_of_the_two_windows_counts() -> None:
    sender = core(window=1000)
    sender.resume(hello(window=50))
    sender.number(Kind.DATA, bytes(40))
    assert sender.room(10)
    assert not sender.room(11)


def test_a_peer_that_boasts_is_not_believed_beyond_the_maximum() -> None:
    sender = core()
    sender.resume(hello(window=1 << 60))
    assert sender.peer_window == WINDOW_BYTES_MAX


def test_an_acknowledgement_makes_room_and_forgets_what_it_covers() -> None:
    sender = greeted(window=100)
    for _ in range(3):
        sender.number(Kind.DATA, bytes(30))
    sender.acknowledged(2)
    assert sender.outstanding == 1
    assert sender.room(70)
    assert not sender.room(71)


def test_an_acknowledgement_that_comes_again_or_late_changes_nothing() -> None:
    sender = greeted()
    for _ in range(3):
        sender.number(Kind.DATA, b"x")
    for sequence in (2, 2, 1, 0):
        sender.acknowledged(sequence)
    assert sender.outstanding == 1


def test_an_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    sender = greeted()
    sender.number(Kind.DATA, b"x")
    with pytest.raises(ProtocolError, match="frame 2 is acknowledged and was never sent"):
        sender.acknowledged(2)
    assert sender.outstanding == 1


# Going on over a new stream.


def test_what_was_not_acknowledged_is_sent_again_in_order_from_what_the_peer_expects() -> None:
    sender = greeted()
    frames = [sender.number(Kind.DATA, bytes([n])) for n in range(5)]
    sender.acknowledged(1)
    assert sender.resume(hello(expects=4)) == frames[3:]
    assert sender.resume(hello(expects=2)) == frames[1:]
    assert sender.resume(hello(expects=6)) == []


@pytest.mark.parametrize("expects", [1, 2, 6, 1 << 60])
def test_a_peer_that_wants_what_it_acknowledged_or_what_was_never_sent_is_refused(
    expects: int,
) -> None:
    sender = greeted()
    for _ in range(4):
        sender.number(Kind.DATA, b"x")
    sender.acknowledged(2)
    with pytest.raises(ProtocolError, match="3 to 5 are possible"):
        sender.resume(hello(expects=expects))


def test_a_greeting_says_which_frame_is_wanted_next() -> None:
    receiver = greeted()
    receiver.received(Kind.MESSAGE, 1, 1)
    receiver.received(Kind.DATA, 2, 1)
    assert parse_greeting(receiver.greeting().payload).expects == 3


# Receiving.


def test_a_frame_that_came_before_is_dropped_and_not_counted_twice() -> None:
    receiver = greeted()
    assert receiver.received(Kind.DATA, 1, 10)
    assert not receiver.received(Kind.DATA, 1, 10)
    assert receiver.taken(1) == Frame(Kind.ACK, 1)


@pytest.mark.parametrize("sequence", [2, 3, (1 << 64) - 1])
def test_a_gap_is_refused(sequence: int) -> None:
    with pytest.raises(ProtocolError, match="where 1 was due"):
        greeted().received(Kind.DATA, sequence, 1)


def test_a_peer_that_sends_more_than_the_window_and_one_frame_is_refused() -> None:
    receiver = greeted()
    assert receiver.received(Kind.DATA, 1, WINDOW)
    assert receiver.received(Kind.DATA, 2, FRAME_BYTES_MAX)
    with pytest.raises(ProtocolError, match="window of 1000 bytes"):
        receiver.received(Kind.DATA, 3, 1)


def test_what_was_taken_may_be_sent_again_without_end() -> None:
    receiver = greeted()
    for sequence in range(1, 50):
        assert receiver.received(Kind.DATA, sequence, FRAME_BYTES_MAX)
        assert receiver.taken(sequence) == Frame(Kind.ACK, sequence)


def test_an_acknowledgement_waits_for_all_frames_before_it() -> None:
    receiver = greeted()
    for sequence in (1, 2, 3):
        receiver.received(Kind.DATA, sequence, 1)
    assert receiver.taken(2) is None
    assert receiver.taken(1) == Frame(Kind.ACK, 2)
    assert receiver.taken(3) == Frame(Kind.ACK, 3)
    assert receiver.last_ack() == Frame(Kind.ACK, 3)


def test_a_message_behind_untaken_data_is_not_acknowledged_before_it() -> None:
    receiver = greeted()
    receiver.received(Kind.DATA, 1, 1)
    receiver.received(Kind.MESSAGE, 2, 1)
    assert receiver.taken(2) is None
    assert receiver.taken(1) == Frame(Kind.ACK, 2)


# Two sides, and a wire that is cut at any moment.


class Side:
    """A core, what it was asked to send, what it has got and not yet taken."""

    def __init__(self) -> None:
        self.core = core()
        self.asked: list[bytes] = []
        self.got: list[bytes] = []
        self.untaken: list[int] = []
        self.wire: list[Frame] = []  # on its way to the other side

    def say(self, frame: Frame | None, connected: bool) -> None:
        if frame is not None and connected:
            self.wire.append(frame)

    def take(self, frame: Frame, connected: bool) -> None:
        if frame.kind is Kind.ACK:
            self.core.acknowledged(frame.sequence)
        elif self.core.received(frame.kind, frame.sequence, len(frame.payload)):
            self.got.append(bytes(frame.payload))
            if frame.kind is Kind.MESSAGE:
                self.say(self.core.taken(frame.sequence), connected)
            else:
                self.untaken.append(frame.sequence)


class FaultyWire(RuleBasedStateMachine):
    """A cut loses what is under way, in both directions; then both sides greet anew."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = (Side(), Side())
        self.count = 0
        self.connected = False
        self.mend()

    @precondition(lambda self: not self.connected)
    @rule()
    def mend(self) -> None:
        greetings = [parse_greeting(side.core.greeting().payload) for side in self.sides]
        for side, greeting in zip(self.sides, reversed(greetings), strict=True):
            side.wire = list(side.core.resume(greeting))
        self.connected = True

    @precondition(lambda self: self.connected)
    @rule()
    def cut(self) -> None:
        self.connected = False
        for side in self.sides:
            side.wire = []

    @rule(which=st.sampled_from((0, 1)), kind=st.sampled_from((Kind.MESSAGE, Kind.DATA)),
          size=st.integers(0, WINDOW))  # fmt: skip
    def send(self, which: int, kind: Kind, size: int) -> None:
        side = self.sides[which]
        if kind is Kind.DATA and not side.core.room(size):
            return
        self.count += 1
        payload: Buffer = b"%d:" % self.count + bytes(size)
        if kind is Kind.DATA:
            payload = payload[:size]
        side.asked.append(bytes(payload))
        side.say(side.core.number(kind, payload), self.connected)

    @rule(which=st.sampled_from((0, 1)))
    def deliver(self, which: int) -> None:
        if self.sides[which].wire:
            self.sides[1 - which].take(self.sides[which].wire.pop(0), self.connected)

    @rule(which=st.sampled_from((0, 1)), at=st.integers(0, 100))
    def write(self, which: int, at: int) -> None:
        side = self.sides[which]
        if side.untaken:
            sequence = side.untaken.pop(at % len(side.untaken))
            side.say(side.core.taken(sequence), self.connected)

    @invariant()
    def what_arrived_is_the_beginning_of_what_was_sent(self) -> None:
        for side, other in (self.sides, self.sides[::-1]):
            assert other.got == side.asked[: len(other.got)]

    @invariant()
    def nobody_holds_more_than_the_window(self) -> None:
        for side in self.sides:
            assert side.core._kept_bytes <= WINDOW
            assert side.core._held <= WINDOW

    def teardown(self) -> None:
        # Faults off: everything must arrive and be acknowledged.
        if not self.connected:
            self.mend()
        for side in self.sides:
            side.wire.append(side.core.last_ack())  # the sign of life
        while any(side.wire or side.untaken for side in self.sides):
            for which in (0, 1):
                self.deliver(which)
                self.write(which, 0)
        for side, other in (self.sides, self.sides[::-1]):
            assert other.got == side.asked
            assert side.core.outstanding == 0


TestFaultyWire = FaultyWire.TestCase
TestFaultyWire.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
