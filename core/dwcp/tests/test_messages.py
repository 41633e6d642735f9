"""Messages come back as they were sent, and whatever is none is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_dwcp import ProtocolError
from novacron_dwcp import messages as msg

KINDS = list(msg.Message.__subclasses__())
TEXT = st.text(max_size=40)
NUMBER = st.integers(-(1 << 63), (1 << 64) - 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBER | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
FACTS = st.dictionaries(TEXT, TEXT | st.booleans(), max_size=4)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    list[msg.Found]: st.lists(
        st.builds(msg.Found, code=TEXT, what=TEXT, cure=TEXT, blocks=st.booleans(), facts=FACTS),
        max_size=3,
    ),
    str: TEXT,
    int: NUMBER,
    bool: st.booleans(),
    bytes: st.binary(max_size=200),
    list[str]: st.lists(TEXT, max_size=5),
    dict[str, Any]: st.dictionaries(TEXT, PLAIN, max_size=4),
}


def messages() -> st.SearchStrategy[msg.Message]:
    def of(kind: type[msg.Message]) -> st.SearchStrategy[msg.Message]:
        values = {field.name: VALUES[field.type] for field in msgspec.structs.fields(kind)}
        if kind in (msg.Offer, msg.Examine):
            counts = {"epoch", "memory_bytes"} & values.keys()
            values |= dict.fromkeys(counts, st.integers(0, msg.EPOCH_MAX - 1))
        return st.builds(kind, **values)

    return st.one_of([of(kind) for kind in KINDS])


def raw(**keys: Any) -> bytes:
    return msgspec.msgpack.encode(keys)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(messages())
def test_a_message_comes_back_as_it_was_sent(message: msg.Message) -> None:
    again = msg.decode(msg.encode(message))
    assert again == message
    assert type(again) is type(message)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": -1},
        {"epoch": 1 << 63},
        {"memory_bytes": -1},
        {"settings": {"a": b"bytes"}},
        {"settings": {"a": {1: "number for a key"}}},
        {"settings": {"a": msgspec.msgpack.Ext(5, b"")}},
    ],
)
def test_an_offer_that_a_disk_or_a_register_could_not_hold_is_refused(
    wrong: dict[str, Any],
) -> None:
    names = ("session", "machine", "source", "target", "driver", "compression")
    sound = dict.fromkeys(names, "a") | {"epoch": 1, "memory_bytes": 1, "runs": True}
    sound |= {"settings": {}, "origin": {}, "type": "Offer"}
    assert isinstance(msg.decode(raw(**sound)), msg.Offer)
    with pytest.raises(ProtocolError):
        msg.decode(raw(**(sound | wrong)))


@pytest.mark.parametrize(
    "found",
    [
        [{"code": "a", "what": "w", "cure": "c"}] * (msg.OBSTACLES_MAX + 1),
        [{"code": "a", "what": "w" * (msg.OBSTACLE_CHARACTERS_MAX + 1), "cure": "c"}],
        [{"code": "a", "what": "w", "cure": "c", "facts": {"a": b"bytes"}}],
        [{"code": "a", "what": "w", "cure": "c", "more": 1}],
        [{"code": "a", "what": "w"}],
    ],
)
def test_obstacles_that_are_too_many_too_long_or_no_obstacles_are_refused(found: list[Any]) -> None:
    one = {"code": "a", "what": "w", "cure": "c"}
    sound = {"type": "Examined", "session": "", "found": [one]}
    assert isinstance(msg.decode(raw(**sound)), msg.Examined)
    with pytest.raises(ProtocolError):
        msg.decode(raw(**(sound | {"found": found})))


def test_every_kind_of_message_is_one_that_decodes() -> None:
    assert set(msg.AnyMessage.__args__) == set(KINDS)


def test_a_received_buffer_may_be_of_any_kind() -> None:
    sent = msg.encode(msg.Unknown(session="s1"))
    assert msg.decode(bytearray(sent)) == msg.decode(memoryview(sent)) == msg.Unknown(session="s1")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\xc1",
        b"\x80",
        raw(type="Unknown"),
        raw(session="s1"),
        raw(type="Surprise", session="s1"),
        raw(type=3, session="s1"),
        raw(type="Unknown", session=3),
        raw(type="Unknown", session="s1", more=1),
        raw(type="Running", session="s1", epoch="2"),
        raw(type="Running", session="s1", epoch=2.5),
        raw(type="Run", session="s1", epoch=2),
        raw(type="Verified", session="s1", digest=b"\x00"),
        msg.encode(msg.Unknown(session="s1")) + b"\x00",
        msg.encode(msg.Unknown(session="s1"))[:-1],
        b"\x82\xa4type\xa7Unknown\xa7session\xdb\xff\xff\xff\xff",
        b"\x82\xa4type\xa7Unknown\xa7session\xa3\xed\xa0\x80",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 1000,
    ],
    ids=range(20),
)
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a message"):
        msg.decode(payload)


def nested(inner: bytes) -> bytes:
    """An offer whose settings hold that."""
    offer = dict.fromkeys(("session", "machine", "source", "target", "driver", "compression"), "x")
    numbers = {"epoch": 1, "memory_bytes": 1, "runs": True, "origin": {}}
    settings_of = msgspec.Raw(b"\x81\xa1a" + inner)
    return raw(type="Offer", **offer, **numbers, settings=settings_of)


@pytest.mark.parametrize(
    "inner",
    [
        b"\x91" * 100_000 + b"\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x81\x80\x01",
        b"\xd7\xff" + b"\xff" * 8,
        b"\xc7\x0c\xff" + b"\x7f" * 12,
        b"\xc7\x0c\xff" + b"\x00" * 4 + b"\x7f" * 8,
    ],
    ids=["depth", "list", "map", "bytes", "key", "time64", "time96", "year"],
)
def test_hostile_settings_within_an_offer_are_refused(inner: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a message"):
        msg.decode(nested(inner))


def test_a_message_that_is_too_long_is_refused_before_it_is_looked_at() -> None:
    longest = bytes(msg.MESSAGE_BYTES_MAX)
    with pytest.raises(ProtocolError, match="not a message"):
        msg.decode(longest)
    with pytest.raises(ProtocolError, match=f"at most {msg.MESSAGE_BYTES_MAX}"):
        msg.decode(longest + b"\x00")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=100))
def test_any_bytes_are_a_message_or_refused(payload: bytes) -> None:
    try:
        message = msg.decode(payload)
    except ProtocolError:
        return
    assert isinstance(message, msg.Message)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(messages(), st.data())
def test_a_message_with_one_byte_changed_is_a_message_or_refused(
    message: msg.Message, data: st.DataObject
) -> None:
    payload = bytearray(msg.encode(message))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    try:
        assert isinstance(msg.decode(payload), msg.Message)
    except ProtocolError:
        return
