"""The zstd codec: its contract, hostile payloads, and the choice of its level."""

from __future__ import annotations

import math
import random
import struct
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron import BATCH_BYTES_MAX, Batch, Effort, Pressure, ProtocolError
from novacron_compression_zstd import (
    LEVELS,
    STORED,
    Settings,
    ZstdCompression,
    ZstdDecoder,
    ZstdEncoder,
)
from novacron_compression_zstd._levels import COSTS, effort
from novacron_testkit.contracts.compression import CompressionContract, numbered, real_pages

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_HEADER = struct.Struct("<BIIII")
MEASURED = (1, 1.5, 1.72, 1.85, 2.05, 2.3, 2.7, 2.76, 2.91, 3.03, 3.13, 3.21, 3.23, 3.25)


def payload(layout: int, addresses: int, pages: int, head: bytes, body: bytes) -> bytes:
    return _HEADER.pack(0x11, layout, addresses, pages, len(head)) + head + body


class TestZstd(CompressionContract):
    provider = ZstdCompression

    def bombs(self, tmp_path: Path) -> Iterable[bytes]:
        zeros = zstd.compress(bytes(96 << 20), 3)
        yield payload(0, 8, 4096, zstd.compress(bytes(8)), zeros)
        yield payload(0, 8, 96 << 20, zstd.compress(bytes(8)), zeros)
        yield payload(0xFFFFFFFF, 0xFFFFFFF8, 0xFFFFFFFF, zeros, zeros)
        yield payload(4096, 0, 0, zeros, b"")
        yield b"\x10" + bytes(96 << 20)


def test_noise_is_stored_as_it_is_and_costs_a_byte_and_the_lengths() -> None:
    batch = numbered(random.Random(1).randbytes(1 << 20))
    encoded = ZstdEncoder(Settings(level=9)).encode(batch)
    assert encoded[0] == 0x10
    assert len(encoded) == len(batch.pack()) + 1


def test_a_small_batch_that_does_not_shrink_is_stored_as_it_is() -> None:
    assert ZstdEncoder(Settings()).encode(Batch(layout=b"x"))[0] == 0x10


def test_pages_among_noise_are_still_found() -> None:
    rng = random.Random(2)
    pages = b"".join(bytes(4096) if i % 2 else rng.randbytes(4096) for i in range(256))
    assert len(ZstdEncoder(Settings()).encode(numbered(pages))) < 0.6 * len(pages)


def test_a_stored_batch_is_decoded_without_a_copy() -> None:
    batch = numbered(random.Random(1).randbytes(1 << 18))
    received = bytearray(ZstdEncoder(Settings()).encode(batch))
    decoded = ZstdDecoder().decode(received)
    assert decoded.pages == batch.pages
    assert isinstance(decoded.pages, memoryview)
    assert decoded.pages.obj is received


def test_a_batch_beyond_the_limit_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="larger"):
        ZstdEncoder(Settings()).encode(Batch(layout=bytes(BATCH_BYTES_MAX + 1)))


@pytest.mark.parametrize("level", [*LEVELS, -50, 19])
def test_every_level_gives_back_the_largest_batches(level: int) -> None:
    encoder, decoder = ZstdEncoder(Settings(level=level)), ZstdDecoder()
    text = real_pages()["text"] * 4
    for batch in (
        Batch(layout=text[:BATCH_BYTES_MAX]),
        Batch(addresses=bytes(8), pages=text[: BATCH_BYTES_MAX - 8]),
    ):
        assert decoder.decode(encoder.encode(batch)) == batch


def sound() -> tuple[Batch, bytes]:
    batch = numbered(real_pages()["text"][: 4 * 512], page=512, layout=b"a layout, a layout")
    return batch, bytes(ZstdEncoder(Settings(level=3)).encode(batch))


def test_every_byte_of_a_frame_may_be_changed_without_harm() -> None:
    _, frame = sound()
    decoder = ZstdDecoder()
    for at in range(len(frame)):
        for value in {0, 0xFF, frame[at] ^ 1, frame[at] ^ 0x80} - {frame[at]}:
            changed = frame[:at] + bytes((value,)) + frame[at + 1 :]
            try:
                batch = decoder.decode(changed)
            except ProtocolError:
                continue
            assert batch.nbytes <= BATCH_BYTES_MAX


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (b"", "empty payload"),
        (b"\x00", "unknown kind 0x0"),
        (b"\x12" + bytes(40), "unknown kind 0x12"),
        (b"\x11", "shorter than its header"),
        (payload(0, 7, 0, b"", b""), "do not fit"),
        (payload(0, 16, 4097, b"", b""), "do not fit"),
        (payload(0, 0, 1, b"", b""), "do not fit"),
        (payload(BATCH_BYTES_MAX, 8, 0, b"", b""), "claims"),
        (_HEADER.pack(0x11, 1, 0, 0, 99) + b"x", "shorter than the frame"),
        (payload(5, 0, 0, zstd.compress(b"four"), b""), "does not hold the 5"),
        (payload(3, 0, 0, zstd.compress(b"four"), b""), "does not hold the 3"),
        (payload(4, 0, 0, zstd.compress(b"four") + b"!", b""), "follows the end"),
        (payload(4, 0, 0, zstd.compress(b"four"), b"!"), "none were announced"),
        (payload(0, 0, 0, zstd.compress(b""), b""), "none were announced"),
        (payload(4, 0, 0, zstd.compress(b"four")[:-1], b""), "does not hold"),
        (payload(4, 0, 0, b"garbage", b""), "damaged"),
        # A skippable frame, and a frame that wants a dictionary.
        (payload(4, 0, 0, b"\x50\x2a\x4d\x18\x04\0\0\0four", b""), "does not hold|damaged"),
        (payload(4, 0, 0, b"\x28\xb5\x2f\xfd\x21\x07\x04" + bytes(8), b""), "damaged"),
    ],
)
def test_what_is_no_frame_is_refused_with_its_cause(broken: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        ZstdDecoder().decode(broken)


def test_a_window_larger_than_a_batch_is_refused() -> None:
    options = {
        zstd.CompressionParameter.window_log: 23,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    compressor = zstd.ZstdCompressor(options=options)
    frame = compressor.compress(bytes(4096), compressor.CONTINUE) + compressor.flush()
    with pytest.raises(ProtocolError, match="damaged"):
        ZstdDecoder().decode(payload(4096, 0, 0, frame, b""))


def test_two_seconds_of_fuzzing_find_nothing() -> None:
    script = Path(__file__).with_name("fuzz_decoder.py")
    done = subprocess.run(
        [sys.executable, str(script), "--seconds", "2", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    values = dict(part.split("=") for part in done.stdout.split())
    assert int(values["executions"]) > 500
    assert int(values["accepted"]) > 0
    assert int(values["growth"].removesuffix("MiB")) < 32


def second(encode: float = 0.0, link: float = 0.0, read: float = 0.0) -> Pressure:
    return Pressure(encode_s=encode, link_wait_s=link, read_wait_s=read)


def ladder() -> Effort:
    return effort(LEVELS[0], LEVELS[-1], start=1, store=True)


def tell(told: Effort, pressure: Pressure, times: int = 1) -> None:
    """As if the encoder did 400 MB/s at level 1, and halved what it got."""
    for _ in range(times):
        cost = COSTS[told.step] / 400e6
        raw = int(pressure.encode_s / cost)
        told.adapt(pressure, raw, raw // 2)


def test_waiting_for_the_link_raises_the_level_to_the_top() -> None:
    assert simulate(100e3, 20)[-1] == LEVELS[-1]


def test_an_encoder_that_is_the_bottleneck_soon_stores_what_it_gets() -> None:
    falling = ladder()
    tell(falling, second(encode=0.2), 3)
    assert falling.step == STORED


def test_without_leave_to_store_the_level_falls_to_the_lowest() -> None:
    falling = effort(LEVELS[0], LEVELS[-1], start=1)
    tell(falling, second(encode=0.95, link=0.01), 20)
    assert falling.step == LEVELS[0]


def test_a_moment_of_waiting_does_not_raise_the_level() -> None:
    calm = ladder()
    for _ in range(20):
        tell(calm, second(encode=0.02, link=0.18))
        tell(calm, second(encode=0.18, link=0.02))
    assert calm.step == 1


def test_waiting_for_the_machine_changes_nothing() -> None:
    calm = ladder()
    tell(calm, second(encode=0.2, link=0.0, read=0.8), 20)
    assert calm.step == 1


def test_a_step_that_the_waiting_time_cannot_pay_is_not_taken() -> None:
    calm = effort(LEVELS[0], LEVELS[-1], start=3)
    tell(calm, second(encode=0.6, link=0.4), 20)
    assert calm.step == 3


# What the levels of the ladder gain, as the README says.
RATIOS = dict(zip(COSTS, MEASURED, strict=True))


def simulate(
    link_bytes_s: float, seconds: float, *, cores: float = math.inf, wire_s: float = 1e-9
) -> list[int]:
    """Levels over time where each costs and gains what the ladder believes.

    ``cores`` are shared by the encoder and by what carries its output, at ``wire_s`` a byte.
    """
    climbing = effort(LEVELS[0], LEVELS[-1], start=-10, store=True)
    levels = []
    for _ in range(int(seconds / 0.1)):
        level = climbing.step
        encode = COSTS[level] / 400e6
        link = 1 / RATIOS[level] / link_bytes_s
        # Encoder and link work at the same time: the slower one sets the pace.
        pace = max(encode, link, (encode + wire_s / RATIOS[level]) / cores)
        raw = 0.1 / pace
        pressure = second(encode=encode * raw, link=(pace - encode) * raw)
        climbing.adapt(pressure, int(raw), int(raw / RATIOS[level]))
        levels.append(level)
    return levels


@pytest.mark.parametrize("megabytes", [1, 5, 20, 50, 100, 200, 400, 1000])
def test_the_level_settles_on_every_link(megabytes: int) -> None:
    levels = simulate(megabytes * 1e6, 400)
    late = levels[len(levels) // 2 :]
    changes = sum(a != b for a, b in pairwise(late))
    assert changes <= 60, late
    usual = max(late, key=late.count)
    assert late.count(usual) > 0.9 * len(late)


def test_slow_links_get_more_effort_than_fast_ones() -> None:
    ends = [simulate(megabytes * 1e6, 40)[-1] for megabytes in (2, 60, 600, 3000)]
    assert ends == sorted(ends, reverse=True)
    assert ends[0] > 5
    assert ends[-1] == STORED


@pytest.mark.parametrize(("megabytes", "reached"), [(1, 9), (5000, STORED)])
def test_the_right_step_is_reached_within_a_second(megabytes: int, reached: int) -> None:
    levels = simulate(megabytes * 1e6, 1.2)
    if reached == STORED:
        assert levels[-1] == STORED
    else:
        assert levels[-1] >= reached


def test_a_step_up_that_takes_its_time_from_the_link_is_taken_back() -> None:
    levels = simulate(5e9, 100, cores=1.3, wire_s=1.8e-9)
    assert levels.count(STORED) > 0.9 * len(levels)
    # Not forced down, for the link seems to hold up the encoder; a trial has shown it.
    assert levels[1] == -10


def test_a_batch_that_is_stored_by_the_ladder_comes_out_as_it_went_in() -> None:
    batch = numbered(real_pages()["text"])
    encoder = ZstdEncoder(Settings())
    assert encoder.encode(batch)[0] == 0x11
    for _ in range(3):
        encoder.encode(batch)
        encoder.adapt(second(encode=0.2))
    assert encoder.level == STORED
    stored = encoder.encode(batch)
    assert stored[0] == 0x10
    assert ZstdDecoder().decode(stored) == batch


@given(
    st.lists(
        st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 3), min_size=1, max_size=40
    ),
    st.integers(-20, 19),
    st.integers(0, 20),
    st.booleans(),
)
@settings(deadline=None, derandomize=True)
def test_whatever_it_is_told_the_level_keeps_its_bounds(
    told: list[tuple[float, float, float]], lowest: int, width: int, store: bool
) -> None:
    highest = min(lowest + width, 19)
    encoder = ZstdEncoder(Settings(level_min=lowest, level_max=highest, store=store))
    for encode, link, read in told:
        encoder.encode(Batch(layout=b"x"))
        encoder.adapt(second(encode, link, read))
        assert lowest <= encoder.level <= highest or (store and encoder.level == STORED)


def test_a_fixed_level_stays() -> None:
    encoder = ZstdEncoder(Settings(level=3))
    for _ in range(10):
        encoder.adapt(second(link=1.0))
    assert encoder.level == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"level": "best"},
        {"level": 1.5},
        {"level": True},
        {"level": 20},
        {"level": -51},
        {"level_min": 5, "level_max": 1},
        {"level_max": 22},
        {"store": "no"},
    ],
)
def test_settings_that_are_none_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"level|must be|bool"):
        Settings(**wrong)  # type: ignore[arg-type]
