"""A batch comes back from its packed form, and whatever is none is refused before it costs."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_dwcp import ADDRESS_BYTES, BATCH_BYTES_MAX, BATCH_BYTES_TARGET, Batch, ProtocolError

HEAD = struct.Struct("<III")


def packed(layout: int, addresses: int, pages: int, body: bytes) -> bytes:
    return HEAD.pack(layout, addresses, pages) + body


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    count = draw(st.integers(0, 6))
    size = draw(st.integers(0, 64)) if count else 0
    return Batch(
        draw(st.binary(max_size=50)),
        draw(st.binary(min_size=8 * count, max_size=8 * count)),
        draw(st.binary(min_size=size * count, max_size=size * count)),
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(batches())
def test_a_batch_comes_back_from_its_packed_form(batch: Batch) -> None:
    again = Batch.unpack(batch.pack())
    assert (bytes(again.layout), bytes(again.addresses), bytes(again.pages)) == (
        batch.layout,
        batch.addresses,
        batch.pages,
    )
    assert again.nbytes == batch.nbytes
    assert again.page_count == batch.page_count == len(batch.addresses) // ADDRESS_BYTES
    assert again.pack() == batch.pack()


def test_an_unpacked_batch_shares_memory_with_what_it_came_from() -> None:
    data = bytearray(Batch(b"layout", bytes(8), b"page").pack())
    batch = Batch.unpack(data)
    data[HEAD.size] = ord("L")
    assert bytes(batch.layout) == b"Layout"


def test_the_largest_batch_is_taken_and_one_byte_more_is_refused() -> None:
    assert BATCH_BYTES_TARGET < BATCH_BYTES_MAX
    largest = Batch(layout=bytes(BATCH_BYTES_MAX))
    assert Batch.unpack(largest.pack()).nbytes == BATCH_BYTES_MAX
    with pytest.raises(ProtocolError, match=f"at most {BATCH_BYTES_MAX}"):
        Batch.unpack(Batch(layout=bytes(BATCH_BYTES_MAX + 1)).pack())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(11),
        packed(1, 0, 0, b""),
        packed(0, 0, 0, b"x"),
        packed(0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, b""),
        packed(0, 7, 0, bytes(7)),
        packed(0, 9, 0, bytes(9)),
        packed(0, 0, 1, bytes(1)),
        packed(0, 16, 3, bytes(19)),
        packed(2, 8, 4, bytes(13)),
    ],
    ids=["empty", "short head", "body missing", "body too long", "absurd lengths",
         "part of an address", "an address and a byte", "pages without addresses",
         "pages of two sizes", "cut"],
)  # fmt: skip
def test_what_does_not_add_up_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"batch|pages"):
        Batch.unpack(data)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(batches(), st.data())
def test_a_changed_batch_is_a_batch_of_the_same_length_or_refused(
    batch: Batch, data: st.DataObject
) -> None:
    changed = bytearray(batch.pack())
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        assert Batch.unpack(changed).nbytes == batch.nbytes
    except ProtocolError:
        assert at < HEAD.size
