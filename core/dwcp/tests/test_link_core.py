"""The link without I/O: every numbered frame arrives exactly once and in order, over any cuts."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from novacron_dwcp import Buffer, ProtocolError
from novacron_dwcp.link import (
    ACK_BYTES_MAX,
    AHEAD_MAX,
    BROADCAST_BYTES_MAX,
    CHANNEL_BYTES_MAX,
    EARLY_MESSAGE_BYTES_MAX,
    FRAME_BYTES_MAX,
    GREETING_BYTES_MAX,
    HEADER,
    MESSAGE_FRAME_BYTES_MAX,
    PARTS_MAX,
    RANGES_MAX,
    VERSION,
    WINDOW_BYTES_MAX,
    Ack,
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

NAME = bytes(16)
WINDOW = 1000
LONGEST = {
    Kind.HELLO: GREETING_BYTES_MAX,
    Kind.WELCOME: GREETING_BYTES_MAX,
    Kind.MESSAGE: MESSAGE_FRAME_BYTES_MAX,
    Kind.DATA: FRAME_BYTES_MAX,
    Kind.PART: FRAME_BYTES_MAX,
    Kind.ACK: ACK_BYTES_MAX,
    Kind.GOODBYE: 0,
    Kind.CHANNEL: CHANNEL_BYTES_MAX,
}


def core(window: int = WINDOW) -> LinkCore:
    return LinkCore(NAME, "s1", window)


def greeted(window: int = WINDOW) -> LinkCore:
    """A core that has met a peer with the same window and nothing sent yet."""
    made = core(window)
    made.opened(1, hello(window=window))
    return made


def sending(count: int, *, window: int = WINDOW, size: int = 1) -> LinkCore:
    """A core with so many frames of DATA out on stream 1."""
    made = greeted(window)
    for _ in range(count):
        made.number(Kind.DATA, bytes(size))
    made.take_out(1, 1 << 30)
    return made


def data(sequence: int, size: int = 1) -> Frame:
    return Frame(Kind.DATA, sequence, bytes(size))


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


@pytest.mark.parametrize("number", [0, 9, 255])
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
    most = LinkCore(b"\xff" * 16, "\N{SNOWMAN}" * 128, WINDOW_BYTES_MAX)
    most._expects = (1 << 63) - AHEAD_MAX
    for step in range(2, 2 * RANGES_MAX + 20, 2):
        most.received(data(most._expects + step))
    longest = most.greeting(known=True, stream=(1 << 63) - 1, replaces=(1 << 63) - 2)
    assert len(longest.payload) <= GREETING_BYTES_MAX
    parse_head(longest.head())


def test_a_peer_of_too_old_a_version_is_refused_with_what_to_do() -> None:
    with pytest.raises(ProtocolError, match="version 1") as refused:
        parse_greeting(msgspec.msgpack.encode({"version": 1, "of": "long ago"}))
    assert "upgrade the older" in refused.value.hint


def test_a_greeting_of_a_newer_version_may_say_more_than_is_known_here() -> None:
    newer = {**msgspec.structs.asdict(hello()), "version": VERSION + 1, "more": [1]}
    assert parse_greeting(msgspec.msgpack.encode(newer)).version == VERSION + 1
    with pytest.raises(ProtocolError, match="not a greeting"):
        parse_greeting(msgspec.msgpack.encode({**newer, "version": VERSION}))
    with pytest.raises(ProtocolError, match="impossible"):
        parse_greeting(msgspec.msgpack.encode({**newer, "expects": 0}))


def test_a_node_held_at_version_2_refuses_every_other_one_as_its_release_did() -> None:
    assert parse_greeting(msgspec.msgpack.encode(hello(version=2)), newest=2).version == 2
    for version in (1, 3, 4):
        with pytest.raises(ProtocolError, match=f"version {version}"):
            parse_greeting(msgspec.msgpack.encode(hello(version=version)), newest=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"link": b"short"},
        {"link": bytes(17)},
        {"session": "s" * 129},
        {"expects": 0},
        {"stream": -1},
        {"received": ((1, 2),)},
        {"received": ((5, 4),)},
        {"received": tuple((2 * n, 2 * n) for n in range(1, 40))},
    ],
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
        msgspec.msgpack.encode({"version": VERSION}),
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


# Acknowledgements.


def test_an_acknowledgement_is_read_back_as_it_was_made() -> None:
    made = Ack(taken=3, arrived=7, received=((9, 9), (11, 20)))
    assert parse_ack(made.frame()) == made


def test_the_longest_acknowledgement_fits_its_limit_and_a_longer_one_is_refused() -> None:
    runs = tuple((2 * n, 2 * n) for n in range(1, RANGES_MAX + 1))
    frame = Ack(0, 0, runs).frame()
    parse_head(frame.head())
    assert parse_ack(frame).received == runs
    with pytest.raises(ProtocolError, match="ACK frame of"):
        parse_ack(Ack(0, 0, (*runs, (1000, 1000))).frame())


@pytest.mark.parametrize(
    "ack",
    [
        Ack(taken=2, arrived=1),
        Ack(0, 5, ((6, 7),)),
        Ack(0, 5, ((9, 8),)),
        Ack(0, 5, ((7, 8), (9, 9))),
        Ack(0, 5, ((10, 11), (7, 8))),
        Ack(0, 5, ((0, 3),)),
    ],
    ids=str,
)
def test_an_acknowledgement_that_contradicts_itself_is_refused(ack: Ack) -> None:
    with pytest.raises(ProtocolError, match="contradicts itself"):
        parse_ack(ack.frame())


@pytest.mark.parametrize("size", [0, 7, 9, 23, ACK_BYTES_MAX + 1])
def test_an_acknowledgement_of_an_impossible_length_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match="ACK frame"):
        parse_ack(Frame(Kind.ACK, 0, bytes(size)))


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


def test_there_is_no_room_for_data_too_far_ahead_of_what_was_taken() -> None:
    sender = greeted(window=1 << 30)
    for _ in range(AHEAD_MAX // 2):
        assert sender.room(1)
        sender.number(Kind.DATA, b"x")
    assert not sender.room(1)


def test_the_smaller_of_the_two_windows_counts() -> None:
    sender = core(window=1000)
    sender.opened(1, hello(window=50))
    sender.number(Kind.DATA, bytes(40))
    assert sender.room(10)
    assert not sender.room(11)


def test_a_peer_that_boasts_is_not_believed_beyond_the_maximum() -> None:
    sender = core()
    sender.opened(1, hello(window=1 << 60))
    assert sender.peer_window == WINDOW_BYTES_MAX


def test_an_acknowledgement_makes_room_and_forgets_what_it_covers() -> None:
    sender = sending(3, window=100, size=30)
    sender.acknowledged(Ack(2, 2))
    assert sender.outstanding == 1
    assert sender.room(70)
    assert not sender.room(71)


def test_an_acknowledgement_that_comes_again_or_late_changes_nothing() -> None:
    sender = sending(3)
    for sequence in (2, 2, 1, 0):
        sender.acknowledged(Ack(sequence, sequence))
    assert sender.outstanding == 1


@pytest.mark.parametrize(
    "ack", [Ack(2, 2), Ack(0, 2), Ack(0, 1, ((3, 3),)), Ack(0, 0, ((1 << 40, 1 << 60),))], ids=str
)
def test_an_acknowledgement_of_what_was_never_sent_is_refused(ack: Ack) -> None:
    sender = sending(1)
    with pytest.raises(ProtocolError, match="is acknowledged and was never sent"):
        sender.acknowledged(ack)
    assert sender.outstanding == 1


def test_an_acknowledgement_of_what_only_waits_to_be_sent_is_refused() -> None:
    sender = sending(1)
    sender.number(Kind.DATA, b"x")
    with pytest.raises(ProtocolError, match="frame 2 is acknowledged and was never sent"):
        sender.acknowledged(Ack(0, 2))


def test_streams_take_turns_and_no_frame_goes_out_twice() -> None:
    sender = greeted()
    sender.opened(2, hello())
    for _ in range(5):
        sender.number(Kind.DATA, bytes(10))
    taken = [sender.take_out(stream, 20) for stream in (1, 2, 1)]
    assert [[frame.sequence for frame in frames] for frames in taken] == [[1, 2], [3, 4], [5]]
    assert sender.unsent_bytes == 0
    assert not sender.waits(1)


def test_a_small_message_goes_out_on_every_stream_and_a_large_one_on_one() -> None:
    sender = greeted()
    sender.opened(2, hello())
    sender.number(Kind.MESSAGE, b"small")
    sender.number(Kind.MESSAGE, bytes(BROADCAST_BYTES_MAX + 1))
    assert [frame.sequence for frame in sender.take_out(1, 1 << 20)] == [1, 2]
    assert [frame.sequence for frame in sender.take_out(2, 1 << 20)] == [1]


def test_a_message_that_has_arrived_is_not_said_again_on_a_slow_stream() -> None:
    sender = greeted()
    sender.opened(2, hello())
    sender.number(Kind.MESSAGE, b"small")
    sender.take_out(1, 100)
    sender.acknowledged(Ack(0, 1))
    assert sender.take_out(2, 100) == []


def test_a_message_may_arrive_before_the_data_that_waits_in_front_of_it() -> None:
    sender = greeted()
    sender.number(Kind.DATA, b"waits")
    sender.number(Kind.MESSAGE, b"goes first")
    assert [frame.sequence for frame in sender.take_out(1, 1)] == [2]
    sender.acknowledged(Ack(0, 0, ((2, 2),)))
    assert [frame.sequence for frame in sender.take_out(1, 1)] == [1]


# Streams that break.


def test_what_a_lost_stream_carried_goes_first_and_in_order_over_another_when_it_is_due() -> None:
    sender = greeted()
    sender.opened(2, hello())
    frames = [sender.number(Kind.DATA, bytes([n])) for n in range(6)]
    assert sender.take_out(1, 2) == frames[:2]
    assert sender.take_out(2, 1) == frames[2:3]
    assert sender.take_out(1, 1) == frames[3:4]
    sender.lost(1, due_s=5.0)
    assert sender.settle(4.9) == 5.0
    assert sender.take_out(2, 1) == frames[4:5]
    assert sender.settle(5.0) is None
    assert sender.take_out(2, 100) == [frames[0], frames[1], frames[3], frames[5]]
    assert sender.resent_bytes == 3 * (HEADER.size + 1)


def test_what_had_arrived_over_a_lost_stream_is_not_sent_again() -> None:
    sender = greeted()
    sender.opened(2, hello())
    frames = [sender.number(Kind.DATA, b"x") for _ in range(5)]
    sender.take_out(1, 5)
    sender.lost(1, due_s=5.0)
    sender.acknowledged(Ack(taken=0, arrived=1, received=((3, 4),)))
    sender.settle(5.0)
    assert sender.take_out(2, 100) == [frames[1], frames[4]]


def test_the_greeting_of_a_new_stream_says_at_once_what_is_to_be_sent_again() -> None:
    sender = sending(5)
    sender.lost(1, due_s=1e9)
    assert sender.take_out(1, 100) == []
    sender.opened(2, hello(expects=2, received=((4, 4),)))
    assert [frame.sequence for frame in sender.take_out(2, 100)] == [2, 3, 5]


def test_what_arrives_while_it_waits_to_be_sent_again_is_not() -> None:
    sender = sending(3)
    sender.lost(1, due_s=0)
    sender.opened(2, hello())
    assert sender.unsent_bytes == 3
    sender.acknowledged(Ack(2, 3))
    assert sender.take_out(2, 100) == []
    assert sender.unsent_bytes == 0
    assert sender.resent_bytes == 0


def test_a_message_is_sent_again_only_if_all_its_streams_are_lost() -> None:
    sender = greeted()
    sender.opened(2, hello())
    sender.number(Kind.MESSAGE, b"x")
    sender.lost(1, due_s=0)
    assert sender.settle(1) is None
    sender.lost(2, due_s=0)
    assert sender.settle(1) is None
    sender.opened(3, hello())
    assert [frame.sequence for frame in sender.take_out(3, 100)] == [1]


@pytest.mark.parametrize("expects", [6, 1 << 60])
def test_a_peer_that_has_what_was_never_sent_is_refused(expects: int) -> None:
    sender = sending(4)
    with pytest.raises(ProtocolError, match="was never sent"):
        sender.opened(2, hello(expects=expects))


def test_a_greeting_that_is_overtaken_by_acknowledgements_changes_nothing() -> None:
    sender = sending(4)
    sender.acknowledged(Ack(3, 4))
    sender.opened(2, hello(expects=2))
    assert sender.outstanding == 1
    assert sender.take_out(2, 100) == []


def test_a_greeting_says_what_has_come_and_in_which_runs() -> None:
    receiver = greeted()
    for sequence in (1, 2, 4, 5, 9):
        receiver.received(data(sequence))
    greeting = parse_greeting(receiver.greeting(stream=7, replaces=3).payload)
    assert (greeting.expects, greeting.received) == (3, ((4, 5), (9, 9)))
    assert (greeting.stream, greeting.replaces) == (7, 3)


# Receiving.


def test_frames_are_handed_on_in_order_however_they_come() -> None:
    receiver = greeted()
    handed = [[f.sequence for f in receiver.received(data(n))] for n in (3, 2, 1, 5, 4)]
    assert handed == [[], [], [1, 2, 3], [], [4, 5]]


@pytest.mark.parametrize("order", [(1, 1), (2, 2, 1)])
def test_a_frame_that_came_before_is_dropped_and_counted(order: tuple[int, ...]) -> None:
    receiver = greeted()
    handed = [frame.sequence for n in order for frame in receiver.received(data(n))]
    assert handed == sorted(set(order))
    assert receiver.duplicates == 1


@pytest.mark.parametrize("sequence", [AHEAD_MAX + 1, (1 << 64) - 1])
def test_a_frame_too_far_ahead_is_refused(sequence: int) -> None:
    with pytest.raises(ProtocolError, match="where 1 was due"):
        greeted().received(data(sequence))


@pytest.mark.parametrize("sequences", [(1, 2, 3), (3, 2, 4), (9, 7, 5)])
def test_a_peer_that_sends_more_than_the_window_and_one_frame_is_refused(
    sequences: tuple[int, int, int],
) -> None:
    receiver = greeted()
    receiver.received(data(sequences[0], WINDOW))
    receiver.received(data(sequences[1], FRAME_BYTES_MAX))
    with pytest.raises(ProtocolError, match="window of 1000 bytes"):
        receiver.received(data(sequences[2], 1))


def test_a_peer_that_sends_messages_without_end_ahead_of_their_turn_is_refused() -> None:
    receiver = greeted()
    large = bytes(1 << 20)
    for sequence in range(2, 2 + EARLY_MESSAGE_BYTES_MAX // len(large)):
        receiver.received(Frame(Kind.MESSAGE, sequence, large))
    with pytest.raises(ProtocolError, match="too many messages"):
        receiver.received(Frame(Kind.MESSAGE, 99, b"x"))


def test_what_was_taken_may_be_sent_again_without_end() -> None:
    receiver = greeted()
    for sequence in range(1, 50):
        assert receiver.received(data(sequence, FRAME_BYTES_MAX))
        assert receiver.taken(sequence)
        assert receiver.ack() == Ack(sequence, sequence)


def test_an_acknowledgement_waits_for_all_frames_before_it() -> None:
    receiver = greeted()
    for sequence in (1, 2, 3):
        receiver.received(data(sequence))
    assert not receiver.taken(2)
    assert receiver.taken(1)
    assert receiver.ack() == Ack(2, 3)
    assert receiver.taken(3)
    assert receiver.ack() == Ack(3, 3)


def test_a_message_behind_untaken_data_is_not_acknowledged_before_it() -> None:
    receiver = greeted()
    receiver.received(data(1))
    receiver.received(Frame(Kind.MESSAGE, 2, b"x"))
    assert not receiver.taken(2)
    assert receiver.taken(1)
    assert receiver.ack() == Ack(2, 2)


def test_more_runs_than_can_be_told_are_told_from_the_first() -> None:
    receiver = greeted()
    for sequence in range(2, 2 * RANGES_MAX + 20, 2):
        receiver.received(data(sequence))
    ack = receiver.ack()
    assert len(ack.received) == RANGES_MAX
    assert parse_ack(ack.frame()) == ack


# The rate limit.


def test_a_meter_lets_a_frame_go_when_those_before_it_are_paid_for() -> None:
    meter = Meter(100.0)
    assert meter.wait_s(10.0) == 0
    meter.spend(50, 10.0)
    assert meter.wait_s(10.0) == pytest.approx(0.5)
    assert meter.wait_s(10.5) == 0


def test_a_meter_without_a_limit_never_waits_and_a_new_limit_forgives_all_but_a_second() -> None:
    meter = Meter()
    meter.spend(1 << 40, 0.0)
    assert meter.wait_s(0.0) == 0
    meter.limit(1.0, 0.0)
    meter.spend(1000, 0.0)
    meter.limit(1000.0, 5.0)
    assert meter.wait_s(5.0) == pytest.approx(1.0)


def test_empty_parts_do_not_add_up_without_end() -> None:
    assembly = Assembly()
    for sequence in range(1, PARTS_MAX + 1):
        assert assembly.add(Frame(Kind.PART, sequence)) is None
    with pytest.raises(ProtocolError, match="more than 512 parts"):
        assembly.add(Frame(Kind.PART, PARTS_MAX + 1))


# Two sides, and streams between them that break at any moment.


class Side:
    """A core, what it was asked to send, what it has got and not yet taken."""

    def __init__(self) -> None:
        self.core = core()
        self.asked: list[bytes] = []
        self.got: list[bytes] = []
        self.untaken: list[int] = []
        self.wires: dict[int, list[Frame]] = {}  # by stream, on their way to the other side

    def pump(self, stream: int, size: int = 1) -> None:
        self.wires[stream] += self.core.take_out(stream, size)

    def say(self, stream: int) -> None:
        self.wires[stream].append(self.core.ack().frame())

    def take(self, frame: Frame) -> None:
        if frame.kind is Kind.ACK:
            self.core.acknowledged(parse_ack(frame))
            return
        for each in self.core.received(frame):
            self.got.append(bytes(each.payload))
            if each.kind is Kind.MESSAGE:
                self.core.taken(each.sequence)
            else:
                self.untaken.append(each.sequence)


class FaultyStreams(RuleBasedStateMachine):
    """A stream that breaks loses what is under way on it, in both directions; the two sides notice
    that at different times, and greet anew on another stream."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = (Side(), Side())
        self.count = 0
        self.streams = 0
        self.now = 0.0
        self.open()

    def live(self) -> list[int]:
        return sorted(set(self.sides[0].wires) & set(self.sides[1].wires))

    @precondition(lambda self: len(self.live()) < 4)
    @rule()
    def open(self) -> None:
        self.streams += 1
        # Both greet before either has read the other's greeting.
        greetings = [parse_greeting(side.core.greeting().payload) for side in self.sides]
        for side, greeting in zip(self.sides, reversed(greetings), strict=True):
            side.core.opened(self.streams, greeting)
            side.wires[self.streams] = []

    @precondition(lambda self: bool(self.live()))
    @rule(at=st.integers(0, 3), which=st.sampled_from((0, 1)))
    def break_one(self, at: int, which: int) -> None:
        """One side notices now; the other when `notice` comes."""
        stream = self.live()[at % len(self.live())]
        side = self.sides[which]
        del side.wires[stream]
        side.core.lost(stream, self.now + 2)
        self.sides[1 - which].wires[stream].clear()

    @rule()
    def notice(self) -> None:
        self.now += 1
        live = self.live()
        for side in self.sides:
            for stream in [stream for stream in side.wires if stream not in live]:
                del side.wires[stream]
                side.core.lost(stream, self.now + 2)
            side.core.settle(self.now)

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
        side.core.number(kind, payload)

    @precondition(lambda self: bool(self.live()))
    @rule(which=st.sampled_from((0, 1)), at=st.integers(0, 3), ack=st.booleans())
    def put(self, which: int, at: int, ack: bool) -> None:
        stream = self.live()[at % len(self.live())]
        self.sides[which].pump(stream)
        if ack:
            self.sides[which].say(stream)

    @precondition(lambda self: bool(self.live()))
    @rule(which=st.sampled_from((0, 1)), at=st.integers(0, 3), again=st.booleans())
    def deliver(self, which: int, at: int, again: bool) -> None:
        wire = self.sides[which].wires[self.live()[at % len(self.live())]]
        if wire:
            frame = wire.pop(0)
            self.sides[1 - which].take(frame)
            if again:
                self.sides[1 - which].take(frame)

    @rule(which=st.sampled_from((0, 1)), at=st.integers(0, 100))
    def write(self, which: int, at: int) -> None:
        side = self.sides[which]
        if side.untaken:
            side.core.taken(side.untaken.pop(at % len(side.untaken)))

    @invariant()
    def what_arrived_is_the_beginning_of_what_was_sent(self) -> None:
        for side, other in (self.sides, self.sides[::-1]):
            assert other.got == side.asked[: len(other.got)]

    @invariant()
    def nobody_holds_more_than_the_window(self) -> None:
        for side in self.sides:
            assert side.core._kept_bytes <= WINDOW
            assert side.core._held <= WINDOW

    @invariant()
    def what_waits_to_be_sent_is_counted(self) -> None:
        for side in self.sides:
            waiting = [*side.core._outbox, *(side.core._kept[n] for n in side.core._again)]
            assert side.core.unsent_bytes == sum(frame.size for frame in waiting)

    def teardown(self) -> None:
        # Faults off: everything must arrive and be acknowledged.
        self.notice()
        self.open()
        self.now += 10
        stream = self.streams
        for _ in range(3):
            for which, side in enumerate(self.sides):
                side.core.settle(self.now)
                for each in self.live():
                    side.pump(each, 1 << 30)
                side.say(stream)
                for each in self.live():
                    while side.wires[each]:
                        self.sides[1 - which].take(side.wires[each].pop(0))
                for other in self.sides:
                    while other.untaken:
                        other.core.taken(other.untaken.pop())
        for side, other in (self.sides, self.sides[::-1]):
            assert other.got == side.asked
            assert side.core.outstanding == 0
            assert not side.core._confirmed
            assert not side.core._carriers


TestFaultyStreams = FaultyStreams.TestCase
TestFaultyStreams.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


# Batches in parts.


def parts_sent(size: int, part_bytes: int) -> list[Frame]:
    sender = greeted(1 << 30)
    sender.number_batch(bytes(range(256)) * (size // 256), b"lead", part_bytes)
    return sender.take_out(1, 1 << 30)


def test_a_batch_is_cut_into_parts_of_about_the_size_asked_for() -> None:
    frames = parts_sent(1 << 20, 100_000)
    assert [frame.kind for frame in frames] == [Kind.PART] * 9 + [Kind.DATA]
    assert all(frame.size <= 150_004 for frame in frames)
    assert [bool(frame.lead) for frame in frames] == [True] + [False] * 9


def test_parts_are_put_together_to_what_they_were_and_taken_together() -> None:
    assembly = Assembly()
    sent = parts_sent(1 << 20, 100_000)
    whole = [
        batch
        for frame in sent
        if (
            batch := assembly.add(
                Frame(frame.kind, frame.sequence, frame.lead + bytes(frame.payload))
            )
        )
    ]
    assert len(whole) == 1
    assert whole[0].payload == b"lead" + bytes(range(256)) * 4096
    assert assembly.parts_of(whole[0]) == tuple(range(1, 11))


def test_a_batch_that_is_small_enough_stays_whole() -> None:
    assert [frame.kind for frame in parts_sent(1024, 4096)] == [Kind.DATA]


def test_parts_that_make_too_large_a_batch_are_refused_before_they_are_put_together() -> None:
    assembly = Assembly()
    assert assembly.add(Frame(Kind.PART, 1, bytes(FRAME_BYTES_MAX))) is None
    with pytest.raises(ProtocolError, match="in parts"):
        assembly.add(Frame(Kind.PART, 2, b"x"))
