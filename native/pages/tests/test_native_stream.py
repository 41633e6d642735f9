"""The stream splitter: what goes in comes out, and C and twin make the same pieces."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_native_pages import JOINED_MAX, JoinProblem, Reason, StreamFormatError, _twin
from novacron_native_pages._format import LAYOUT_MAX, PAGES_TARGET
from novacron_native_pages.synthetic import StreamWriter, random_stream

try:
    from novacron_native_pages import _c
except ImportError:  # installed without a compiler: then the twin is tested alone
    IMPLEMENTATIONS: list[ModuleType] = [_twin]
else:
    IMPLEMENTATIONS = [_c, _twin]

both = pytest.mark.parametrize("pages", IMPLEMENTATIONS, ids=lambda m: m.__name__[-4:])
PAGE = 4096
Parts = tuple[bytes, bytes, bytes]


def split(pages: ModuleType, stream: bytes, cuts: Sequence[int] = ()) -> list[Parts]:
    return splitter_and_pieces(pages, stream, cuts)[1]


def splitter_and_pieces(pages, stream, cuts=()):
    splitter = pages.Splitter()
    pieces = []
    at = 0
    for cut in [*sorted(cuts), len(stream)]:
        pieces += splitter.feed(stream[at:cut])
        at = cut
    pieces += splitter.flush(everything=True)
    return splitter, [tuple(map(bytes, piece)) for piece in pieces]


def join(pages: ModuleType, pieces: Sequence[Parts]) -> bytes:
    out = bytearray(JOINED_MAX)
    joined = bytearray()
    for piece in pieces:
        joined += out[: pages.join_into(out, *piece)]
    return bytes(joined)


def numbers(addresses: bytes) -> list[tuple[int, int]]:
    """Block number and page index of each address."""
    values = struct.unpack(f"<{len(addresses) // 8}Q", addresses)
    return [(value >> 48, (value & ((1 << 48) - 1)) // PAGE) for value in values]


def content(value: int) -> bytes:
    return struct.pack("<Q", value) * (PAGE // 8)


def small_stream() -> bytes:
    """A bit of everything that is walked, small enough to cut at every byte."""
    writer = StreamWriter({"pc.ram": 1 << 20, "rom": 1 << 16})
    writer.configuration()
    writer.command(1, bytes(4))
    writer.start_ram()
    writer.begin_part()
    writer.page("pc.ram", 0, content(1))
    writer.page("pc.ram", PAGE, content(2))
    for index in range(2, 9):
        writer.zero("pc.ram", index * PAGE)
    writer.zero("pc.ram", 20 * PAGE, fill=1)
    writer.xbzrle("pc.ram", 21 * PAGE, b"packed")
    writer.page("rom", 3 * PAGE, content(3))
    writer.end_part()
    writer.device("bitmap", b"\x7e" * 9, kind=1, number=5)
    writer.begin_part(last=True)
    writer.page("pc.ram", PAGE, content(4))
    writer.end_part()
    writer.device("cpu", b"registers")
    writer.end()
    return bytes(writer.stream)


@both
def test_pages_and_addresses_are_separated_from_the_layout(pages):
    splitter, pieces = splitter_and_pieces(pages, small_stream())
    ((layout, addresses, contents),) = pieces
    assert numbers(addresses) == [(0, 0), (0, 1), (1, 3), (0, 1)]
    assert contents == b"".join(map(content, [1, 2, 3, 4]))
    assert len(layout) < 600
    seen = splitter.counters
    assert (seen.pages, seen.zero_pages, seen.blocks) == (5, 8, 2)
    assert (seen.ram_bytes, seen.rounds, seen.resyncs) == ((1 << 20) + (1 << 16), 2, 1)
    assert (seen.reason, seen.section) == (Reason.DEVICE, "cpu")
    assert seen.bytes == len(small_stream())


@both
def test_joining_gives_the_stream_back(pages):
    stream = small_stream()
    assert join(pages, split(pages, stream)) == stream


@both
def test_a_stream_cut_in_two_at_any_byte_gives_the_same_pieces(pages):
    stream = small_stream()
    whole = split(pages, stream)
    for cut in range(0, len(stream), 1 if pages is not _twin else 7):
        assert split(pages, stream, [cut]) == whole


@both
def test_a_stream_fed_byte_by_byte_gives_the_same_pieces(pages):
    stream = small_stream()
    assert split(pages, stream, range(len(stream))) == split(pages, stream)


@both
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_random_streams_come_back_however_they_are_cut_and_flushed(pages, seed, data):
    rng = random.Random(seed)
    stream = random_stream(rng, records=60)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    flushes = data.draw(st.lists(st.sampled_from([None, False, True]), min_size=13, max_size=13))
    splitter = pages.Splitter()
    pieces = []
    at = 0
    for cut, flush in zip([*sorted(cuts), len(stream)], flushes, strict=False):
        pieces += splitter.feed(memoryview(stream)[at:cut])
        at = cut
        if flush is not None:
            pieces += splitter.flush(flush)
            if flush:
                assert join(pages, pieces) == stream[:cut]
    pieces += splitter.flush(True)
    assert join(pages, pieces) == stream
    assert splitter.counters.bytes == len(stream)


@pytest.mark.skipif(len(IMPLEMENTATIONS) == 1, reason="there is no C part in this installation")
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_c_and_twin_agree_on_sound_and_on_broken_streams(seed, data):
    rng = random.Random(seed)
    stream = bytearray(random_stream(rng, records=60))
    for at in data.draw(st.lists(st.integers(0, len(stream) - 1), max_size=5)):
        stream[at] = data.draw(st.integers(0, 255))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    one, first = splitter_and_pieces(_c, bytes(stream), cuts)
    two, second = splitter_and_pieces(_twin, bytes(stream), cuts[:2])
    assert first == second
    assert one.counters == two.counters
    assert join(_c, second) == join(_twin, first) == stream


@pytest.mark.skipif(len(IMPLEMENTATIONS) == 1, reason="there is no C part in this installation")
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_c_and_twin_agree_on_hostile_batches(data):
    parts = list(split(_c, small_stream())[0])
    for _ in range(data.draw(st.integers(0, 3))):
        which = data.draw(st.sampled_from([0, 0, 0, 1, 2]))
        part = bytearray(parts[which])
        if data.draw(st.booleans()):
            part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
        else:
            del part[data.draw(st.integers(0, len(part))) :]
        parts[which] = bytes(part) or b"\0"
    results = []
    for pages in (_c, _twin):
        try:
            results.append(join(pages, [tuple(parts)]))
        except StreamFormatError as error:
            results.append(error.problem)
    assert results[0] == results[1]


@both
def test_batches_are_about_a_mebibyte_and_bounded(pages):
    writer = StreamWriter({"ram": 1 << 26})
    writer.start_ram()
    writer.begin_part()
    for index in range(600):
        writer.page("ram", index * PAGE, content(index))
    for index in range(600, 10**6 // 2):
        writer.zero("ram", index * PAGE)
    writer.end_part()
    writer.device("disk", random.Random(1).randbytes(3 << 20))
    stream = bytes(writer.stream)
    pieces = split(pages, stream)
    assert join(pages, pieces) == stream
    sizes = [tuple(map(len, piece)) for piece in pieces]
    assert [size[1:] for size in sizes[:3]] == [(2048, 1 << 20), (2048, 1 << 20), (704, 360448)]
    assert max(size[0] for size in sizes) <= LAYOUT_MAX
    assert max(size[2] for size in sizes) <= PAGES_TARGET
    assert len(sizes) == 8  # a run of 499,400 zero pages is 4.5 MB of stream and nearly no layout
    assert sizes[2][0] + sizes[3][0] < 200


def opaque_after(spoil) -> tuple[Reason, str]:
    reasons = []
    for pages in IMPLEMENTATIONS:
        writer = StreamWriter({"ram": 1 << 20})
        spoil(writer)
        stream = bytes(writer.stream) + bytes(1000)
        splitter, pieces = splitter_and_pieces(pages, stream)
        assert join(pages, pieces) == stream
        reasons.append((splitter.counters.reason, splitter.counters.section))
    assert len(set(reasons)) == 1
    return reasons[0]


def in_ram(*words: int):
    def spoil(writer: StreamWriter) -> None:
        writer.start_ram()
        writer.begin_part()
        for word in words:
            writer.stream += struct.pack(">Q", word)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda w: w.stream.__setitem__(0, 0), Reason.NOT_QEMU),
        (lambda w: w.stream.__setitem__(7, 4), Reason.NOT_QEMU),
        (lambda w: w.stream.append(0x55), Reason.BAD_RECORD),
        (in_ram(0x8000), Reason.BAD_RECORD),
        (in_ram(0x80), Reason.BAD_RECORD),
        (in_ram(1 << 48 | 0x28), Reason.BAD_RECORD),
        (in_ram(0x28), Reason.BAD_RECORD),
        (in_ram(0x200), Reason.MULTIFD),
        (lambda w: w.command(3, bytes(16)), Reason.POSTCOPY),
        (lambda w: w.command(7, bytes(4)), Reason.POSTCOPY),
        (lambda w: w.configuration("x" * 5000), Reason.CONFIGURATION),
        (lambda w: w.configuration(page_bits=30), Reason.CONFIGURATION),
        (
            lambda w: (w.configuration(), w.subsection("configuration/capabilities", bytes(4))),
            Reason.CONFIGURATION,
        ),
        (lambda w: w.device("vmstate", b"abc"), Reason.DEVICE),
    ],
)
def test_what_is_not_known_passes_through_with_its_reason(spoil, expected):
    reason, section = opaque_after(spoil)
    assert reason is expected
    assert section == ("vmstate" if expected is Reason.DEVICE else "")


def test_too_many_blocks_make_a_stream_opaque():
    def spoil(writer: StreamWriter) -> None:
        writer.blocks = {f"block{i}": PAGE for i in range(1025)}
        writer.start_ram()

    assert opaque_after(spoil) == (Reason.TOO_MANY_BLOCKS, "")


@both
def test_a_ram_section_is_found_again_after_sections_without_a_length(pages):
    writer = StreamWriter({"ram": 1 << 20})
    writer.device("virtio-mem-early", b"\x7e\x00")
    writer.start_ram()
    writer.device("dirty-bitmap", b"\x7e\x00\x00\x00\x07\x02" * 9, kind=1, number=7)
    writer.begin_part()
    writer.page("ram", 0, content(5))
    writer.end_part()
    splitter, ((_, addresses, contents),) = splitter_and_pieces(pages, bytes(writer.stream))
    assert numbers(addresses) == [(0, 0)]
    assert contents == content(5)
    assert splitter.counters.resyncs == 2
    assert splitter.counters.reason is Reason.WALKING


@both
def test_pages_of_another_size_are_walked_when_the_stream_says_so(pages):
    writer = StreamWriter({"ram": 1 << 20}, page_size=1 << 16)
    writer.configuration("virt", page_bits=16)
    writer.start_ram()
    writer.begin_part()
    writer.page("ram", 0, b"x" * 65536)
    writer.page("ram", 65536, b"y" * 65536)
    writer.end_part()
    splitter, pieces = splitter_and_pieces(pages, bytes(writer.stream))
    assert join(pages, pieces) == writer.stream
    assert pieces[0][2] == b"x" * 65536 + b"y" * 65536
    assert splitter.counters.page_size == 65536


@both
def test_a_flush_keeps_back_only_the_record_under_way(pages):
    writer = StreamWriter({"ram": 1 << 20})
    writer.start_ram()
    writer.begin_part()
    writer.page("ram", 0, content(1))
    writer.page("ram", PAGE, content(2))
    whole = bytes(writer.stream)
    splitter = pages.Splitter()
    assert splitter.feed(whole[:-100]) == []
    (first,) = splitter.flush()
    assert join(pages, [first]) == whole[: -8 - PAGE]
    assert splitter.flush() == []
    splitter.feed(whole[-100:])
    (second,) = splitter.flush()
    assert numbers(bytes(second.addresses)) == [(0, 1)]


def batch(*operations: bytes, total: int, addresses: bytes = b"", pages: bytes = b"") -> Parts:
    return struct.pack("<BBHI", 1, 12, 0, total) + b"".join(operations), addresses, pages


def operation(kind: int, count: int, rest: bytes = b"") -> bytes:
    return struct.pack("<BI", kind, count) + rest


ADDRESS = struct.pack("<Q", 0)


@both
@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ((b"", b"", b""), JoinProblem.BAD_HEADER),
        ((b"\2\x0c" + bytes(6), b"", b""), JoinProblem.BAD_HEADER),
        ((b"\1\x20" + bytes(6), b"", b""), JoinProblem.BAD_HEADER),
        ((b"\1\x0c\1" + bytes(5), b"", b""), JoinProblem.BAD_HEADER),
        (batch(total=JOINED_MAX + 1), JoinProblem.TOO_LONG),
        (batch(total=1), JoinProblem.BAD_COUNT),
        (batch(b"\1", total=1), JoinProblem.BAD_OPERATION),
        (batch(operation(1, 0), total=0), JoinProblem.BAD_OPERATION),
        (batch(operation(9, 1), total=1), JoinProblem.BAD_OPERATION),
        (batch(operation(1, 2, b"a"), total=2), JoinProblem.BAD_OPERATION),
        (batch(operation(1, 2**32 - 1, b"a"), total=2), JoinProblem.BAD_OPERATION),
        (batch(operation(1, 2, b"ab"), total=1), JoinProblem.TOO_LONG),
        (batch(operation(2, 1), total=PAGE + 8), JoinProblem.BAD_COUNT),
        (
            batch(operation(2, 1), total=PAGE + 8, addresses=ADDRESS, pages=bytes(PAGE - 1)),
            JoinProblem.BAD_COUNT,
        ),
        (batch(total=0, addresses=bytes(7)), JoinProblem.BAD_COUNT),
        (batch(total=0, addresses=ADDRESS, pages=bytes(PAGE)), JoinProblem.BAD_COUNT),
        (
            batch(operation(2, 1), total=PAGE, addresses=ADDRESS, pages=bytes(PAGE)),
            JoinProblem.TOO_LONG,
        ),
        (
            batch(
                operation(2, 1), total=PAGE + 8, addresses=struct.pack("<Q", 8), pages=bytes(PAGE)
            ),
            JoinProblem.BAD_OPERATION,
        ),
        (batch(operation(3, 1, bytes(7)), total=9), JoinProblem.BAD_OPERATION),
        (batch(operation(3, 2**32 - 1, bytes(8)), total=9), JoinProblem.TOO_LONG),
        (batch(operation(3, 1, struct.pack("<Q", 1)), total=9), JoinProblem.BAD_OPERATION),
        (batch(operation(3, 1, struct.pack("<Q", 1 << 48)), total=9), JoinProblem.BAD_OPERATION),
        (
            batch(operation(3, 2, struct.pack("<Q", (1 << 48) - PAGE)), total=18),
            JoinProblem.BAD_OPERATION,
        ),
    ],
)
def test_a_batch_that_no_splitter_makes_is_refused(pages, parts, problem):
    with pytest.raises(StreamFormatError) as caught:
        pages.join_into(bytearray(JOINED_MAX), *parts)
    assert caught.value.problem is problem


@both
def test_a_batch_longer_than_the_room_is_refused(pages):
    parts = batch(operation(1, 5, b"hello"), total=5)
    with pytest.raises(StreamFormatError):
        pages.join_into(bytearray(4), *parts)
    out = bytearray(5)
    assert pages.join_into(out, *parts) == 5
    assert out == b"hello"
    with pytest.raises(BufferError):
        pages.join_into(bytes(5), *parts)
