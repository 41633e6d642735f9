"""Streams to batches and back, by the protocol's values and errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_dwcp import BATCH_BYTES_MAX, Batch
from novacron_native_pages.synthetic import StreamWriter
from novacron_qemu.stream import StreamJoiner, StreamProgress, StreamRefused, StreamSplitter

PAGE = 4096


def guest_stream(pages: int = 3) -> bytes:
    writer = StreamWriter({"pc.ram": 1 << 24})
    writer.configuration()
    writer.start_ram()
    for round_number in range(2):
        writer.begin_part(last=round_number == 1)
        for index in range(pages):
            writer.page("pc.ram", index * PAGE, bytes([round_number + 1]) * PAGE)
        writer.zero("pc.ram", pages * PAGE)
        writer.end_part()
    writer.device("cpu", b"registers")
    writer.end()
    return bytes(writer.stream)


def split(stream: bytes, read_size: int = 1 << 20) -> tuple[list[Batch], StreamProgress]:
    splitter = StreamSplitter()
    batches = []
    for at in range(0, len(stream), read_size):
        batches += splitter.feed(memoryview(stream)[at : at + read_size])
    batches += splitter.end()
    return batches, splitter.progress


def join(batches: list[Batch]) -> bytes:
    joiner = StreamJoiner()
    return b"".join([bytes(joiner.join(batch)) for batch in batches])


def test_a_stream_comes_back_from_its_batches_packed_and_unpacked():
    stream = guest_stream(1000)
    batches, _ = split(stream)
    assert join([Batch.unpack(batch.pack()) for batch in batches]) == stream
    assert all(batch.nbytes <= BATCH_BYTES_MAX for batch in batches)


@settings(max_examples=30, deadline=None)
@given(read_size=st.integers(1, 5000))
def test_how_a_stream_is_read_does_not_change_its_batches(read_size):
    stream = guest_stream()
    assert split(stream, read_size) == split(stream)


def test_a_page_sent_again_has_the_address_it_had():
    ((batch,), _) = split(guest_stream(3))
    addresses = memoryview(bytes(batch.addresses)).cast("Q").tolist()
    assert batch.page_count == 6
    assert addresses[:3] == addresses[3:] == [0, PAGE, 2 * PAGE]


def test_progress_tells_what_was_seen():
    stream = guest_stream(3)
    _, progress = split(stream)
    opaque = stream.index(b"\x04\0\0\0\x09\x03cpu")
    assert progress == StreamProgress(
        bytes=len(stream),
        opaque_bytes=len(stream) - opaque,
        pages=6,
        zero_pages=2,
        ram_bytes=1 << 24,
        rounds=2,
        opaque=True,
        why="inside a section that has no length: cpu",
    )


def test_a_stream_that_is_none_passes_through_and_says_why():
    batches, progress = split(b"not a stream at all")
    assert join(batches) == b"not a stream at all"
    assert (progress.opaque, progress.resumable) == (True, False)
    assert "no QEMU migration stream" in progress.why


def test_a_flush_brings_out_whole_records_and_end_brings_out_all():
    stream = guest_stream(3)
    splitter = StreamSplitter()
    assert splitter.feed(stream[: 2 * PAGE]) == []
    joiner = StreamJoiner()
    (first,) = splitter.flush()
    assert splitter.flush() == []
    (second,) = splitter.end()
    assert splitter.end() == []
    joined = bytes(joiner.join(first))
    assert PAGE < len(joined) < 2 * PAGE
    assert joined + bytes(joiner.join(second)) == stream[: 2 * PAGE]
    assert joiner.joined_bytes == 2 * PAGE


def test_a_batch_that_is_damaged_is_the_peers_fault():
    ((batch,), _) = split(guest_stream(3))
    joiner = StreamJoiner()
    with pytest.raises(StreamRefused) as caught:
        joiner.join(Batch(batch.layout, batch.addresses, bytes(batch.pages)[:-PAGE]))
    assert (caught.value.problem, caught.value.at) == ("BAD_COUNT", 0)
    with pytest.raises(StreamRefused):
        joiner.join(Batch())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_fuzzer_finds_nothing_in_a_short_run(seed):
    fuzzer = Path(__file__).with_name("fuzz_stream.py")
    done = subprocess.run(
        [sys.executable, str(fuzzer), "--runs", "500", "--seed", str(seed)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"seed {seed}: 500 executions" in done.stdout
