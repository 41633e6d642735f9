"""What arrives is a message within its bounds, or a `WireError`."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_consensus_gossip import _wire as wire

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
ALIVE = st.builds(
    wire.Alive,
    NAMES,
    st.integers(0, wire.INCARNATION_MAX),
    st.text(min_size=1, max_size=wire.ADDRESS_CHARS_MAX),
    st.integers(0, wire.LIFE_MAX),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4),
)
DOUBT = st.builds(wire.Doubt, NAMES, st.integers(0, wire.INCARNATION_MAX), st.integers(1, 3), NAMES)
NEWS = st.lists(ALIVE | DOUBT, max_size=3).map(tuple)
NUMBER = st.integers(0, (1 << 32) - 1)
IDS = st.lists(st.binary(min_size=16, max_size=16), max_size=4).map(tuple)
DATAGRAM = (
    st.builds(wire.Ping, NAMES, NUMBER, NAMES, NEWS)
    | st.builds(wire.Ack, NAMES, NUMBER, NEWS)
    | st.builds(wire.Relay, NAMES, NUMBER, NAMES, st.just("10.0.0.1:4771"), NEWS)
    | st.builds(wire.Nack, NAMES, NUMBER, NEWS)
    | st.builds(wire.Gossip, NAMES, NEWS)
    | st.builds(wire.Announce, NAMES, IDS)
    | st.builds(wire.Graft, NAMES, st.binary(min_size=16, max_size=16))
    | st.builds(wire.Prune, NAMES)
)
BULK = (
    st.builds(wire.Compare, NAMES, st.just("a"), st.just(bytes(512)), IDS)
    | st.builds(wire.Share, NAMES, st.just("a"), st.just((0, 63)), NEWS, st.booleans(), IDS)
    | st.builds(
        wire.Payload,
        NAMES,
        st.binary(min_size=16, max_size=16),
        NAMES,
        st.text(min_size=1, max_size=63),
        st.integers(0, 255),
        st.binary(max_size=200),
    )
)


@settings(deadline=None)
@given(DATAGRAM)
def test_a_datagram_comes_back_as_it_was_sent(message: wire.Datagram) -> None:
    data = wire.encode(message)
    if len(data) <= wire.DATAGRAM_BYTES_MAX:
        assert wire.decode_datagram(data) == message


@settings(deadline=None)
@given(BULK)
def test_a_message_of_a_stream_comes_back_as_it_was_sent(message: wire.Bulk) -> None:
    assert wire.decode_bulk(wire.encode(message)) == message


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    for decode in (wire.decode_datagram, wire.decode_bulk):
        try:
            decode(data)
        except wire.WireError:
            continue


def test_an_oversized_datagram_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(wire.WireError, match=f"{wire.DATAGRAM_BYTES_MAX} is the most"):
        wire.decode_datagram(bytes(wire.DATAGRAM_BYTES_MAX + 1))


def test_an_oversized_message_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(wire.WireError, match=f"{wire.STREAM_BYTES_MAX} is the most"):
        wire.decode_bulk(bytes(wire.STREAM_BYTES_MAX + 1))


def test_the_fullest_datagram_that_a_member_makes_is_within_the_bound() -> None:
    name, address = "n" * 63, "a" * wire.ADDRESS_CHARS_MAX
    filler = (b"x" * wire.NEWS_BYTES_MAX,)
    head = wire.encode(wire.Relay(name, (1 << 32) - 1, name, address, wire.embed(filler)))
    assert len(head) + 3 <= wire.DATAGRAM_BYTES_MAX


@pytest.mark.parametrize(
    "claim",
    [
        wire.Alive("n", 0, "a", 1, {"k": "v" * 600}),
        wire.Alive("n", 0, "a", 1, {str(n): "" for n in range(17)}),
        wire.Alive("n", 0, "a" * 65, 1, {}),
        wire.Alive("n", 0, "", 1, {}),
        wire.Alive("n", wire.INCARNATION_MAX + 1, "a", 1, {}),
        wire.Alive("n", -1, "a", 1, {}),
        wire.Alive("N", 0, "a", 1, {}),
        wire.Alive("n\n", 0, "a", 1, {}),
        wire.Alive("n" * 64, 0, "a", 1, {}),
        wire.Doubt("n", 0, 0, "m"),
        wire.Doubt("n", 0, 4, "m"),
    ],
    ids=repr,
)
def test_a_claim_out_of_bounds_is_refused(claim: wire.Claim) -> None:
    with pytest.raises(wire.WireError):
        wire.decode_datagram(wire.encode(wire.Gossip("n", (claim,))))


def test_unknown_kinds_fields_and_extensions_are_refused() -> None:
    pack = msgspec.msgpack.encode
    for strange in (
        [99, "n"],
        [8, "n", "more"],
        {"type": 8},
        [1, "n", msgspec.msgpack.Ext(5, b"x"), "t", []],
        [9, "n", "a", bytes(511), []],
    ):
        with pytest.raises(wire.WireError):
            wire.decode_datagram(pack(strange))
        with pytest.raises(wire.WireError):
            wire.decode_bulk(pack(strange))


def test_a_datagrams_kind_is_refused_on_a_stream_and_the_other_way_round() -> None:
    with pytest.raises(wire.WireError):
        wire.decode_bulk(wire.encode(wire.Prune("n")))
    with pytest.raises(wire.WireError):
        wire.decode_datagram(wire.encode(wire.Compare("n", "a", bytes(512))))


def test_a_damaged_saved_record_is_refused() -> None:
    saved = wire.Saved("n", 7, ("a",))
    assert wire.decode_saved(wire.encode_saved(saved)) == saved
    with pytest.raises(wire.WireError, match="damaged"):
        wire.decode_saved(b"\xc1")
