"""Where QEMU's stream ends, however it comes."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from novacron_machine_libvirt._stream_end import StreamEnd

DESCRIBED = json.dumps({"page_size": 4096, "devices": [{"name": "cpu"}]}).encode()
END = b"\x00\x06" + len(DESCRIBED).to_bytes(4) + DESCRIBED


def seen_at(stream: bytes, read_size: int) -> list[int]:
    """After how many bytes the end was seen."""
    end = StreamEnd()
    sizes = range(0, len(stream), read_size)
    return [at for at in sizes if end.feed(memoryview(stream)[at : at + read_size])]


@given(st.binary(max_size=200), st.integers(1, 300))
def test_the_end_is_seen_with_the_last_byte_and_not_before(state: bytes, read_size: int) -> None:
    stream = state + END
    last = (len(stream) - 1) // read_size * read_size
    assert seen_at(stream, read_size) == [last]


@given(st.integers(1, len(END) - 1))
def test_a_stream_that_is_cut_has_no_end(length: int) -> None:
    assert seen_at(b"state" + END[:length], 7) == []


def test_what_only_looks_like_an_end_is_none() -> None:
    text = b'{"no": "such thing"}'
    assert seen_at(b"\x00\x06" + len(text).to_bytes(4) + text, 1000) == []
    assert seen_at(b"\x00\x06\x00\x00\x00\x04{oh}", 1000) == []
    assert seen_at(b"\x00\x06\x00\x00\x00\x09" + b'{"devices": []}', 1000) == []
