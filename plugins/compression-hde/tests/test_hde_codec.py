"""The codec ``hde``: its contract, hostile payloads, its effort and its figures."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron import BATCH_BYTES_MAX, Batch, NodeFacts, PeerProtocolError, Pressure
from novacron_compression_hde import UNPACKED, UNTOUCHED, HdeCompression, HdeEncoder, Settings
from novacron_compression_hde import _frame as fr
from novacron_compression_hde._effort import COSTS, LEVELS, effort
from novacron_testkit.contracts.compression import (
    CompressionContract,
    leaving,
    numbered,
    pair,
    plain,
    real_pages,
)

# 256 pages that differ, and that zstd halves.
PROGRAM = bytes(random.Random(3).choices(b"0123456789abcdef", k=1 << 20))
OPENING = fr.BEGIN.pack(512, 1000)


def on_ladder(
    *, flags: int = 0, count: int = 0, layout: int = 0, places: int = 0, args: int = 0,
    words: int = 0, head: bytes = b"", delta: bytes = b"", rest: bytes = b"",
    opening: bytes = b"",
) -> bytes:  # fmt: skip
    header = fr.LADDER.pack(
        fr.ON_LADDER, flags, count, layout, places, args, words, len(head), len(delta)
    )
    return header + opening + head + delta + rest


def codec(tmp_path: Path, **chosen: object) -> HdeCompression:
    facts = NodeFacts(name="a", state_dir=tmp_path)
    return HdeCompression(Settings(**chosen), facts)  # type: ignore[arg-type]


class TestHde(CompressionContract):
    provider = HdeCompression

    def bombs(self, tmp_path: Path) -> Iterable[bytes]:
        zeros = fr.Packer(3).pack(bytes(96 << 20))
        yield fr.PACKED_HEADER.pack(fr.PACKED, 0, 8, 4096, 8) + bytes(8) + zeros
        yield fr.PACKED_HEADER.pack(fr.PACKED, 0xFFFFFFFF, 8, 8, 8) + zeros
        yield bytes((fr.PLAIN,)) + bytes(96 << 20)
        for count, layout in ((1, 0), (1000, 0), (0, 4 << 20), (0xFFFFFFFF, 0)):
            yield on_ladder(
                flags=fr.BEGINS, count=count, layout=layout, head=zeros, opening=OPENING
            )
        yield on_ladder(flags=fr.BEGINS, opening=b"\xff" * 8)


@pytest.mark.parametrize("level", [-50, 1, 19])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_any_history_of_a_guest_comes_back(
    tmp_path_factory: pytest.TempPathFactory, level: int, seed: int
) -> None:
    rng = random.Random(seed)
    made = codec(tmp_path_factory.mktemp("hde"), level=level)
    encoder, decoder = pair(made)
    page = rng.choice([512, 4096, 65536])
    memory = [bytes(page) for _ in range(30)]
    for _ in range(8):
        chosen = [rng.randrange(30) for _ in range(rng.randrange(1, 12))]
        for number in chosen:
            kind = rng.randrange(6)
            if kind == 0:
                memory[number] = bytes([rng.randrange(3)]) * page
            elif kind == 1:
                memory[number] = memory[rng.randrange(30)]
            elif kind == 2:
                memory[number] = rng.randbytes(page)
            elif kind == 3:
                changed = bytearray(memory[number])
                changed[rng.randrange(page)] ^= 1 + rng.randrange(255)
                memory[number] = bytes(changed)
        addresses = struct.pack(f"<{len(chosen)}Q", *(number * page for number in chosen))
        batch = Batch(rng.randbytes(3), addresses, b"".join(memory[n] for n in chosen))
        assert plain(decoder.decode(encoder.encode(batch))) == plain(batch)
    encoder.ended(False)  # type: ignore[attr-defined]
    decoder.ended(False)  # type: ignore[attr-defined]


def test_pages_that_are_sent_again_cost_nearly_nothing(tmp_path: Path) -> None:
    encoder, _ = pair(codec(tmp_path))
    batch = numbered(PROGRAM)
    encoder.encode(batch)
    assert len(encoder.encode(batch)) < 150


def test_pages_of_an_odd_size_go_past_the_page_store(tmp_path: Path) -> None:
    encoder, decoder = pair(codec(tmp_path, level=3))
    for size in (500, 1000, 1 << 17):
        batch = numbered(real_pages()["text"][: 4 * size], page=size)
        payload = encoder.encode(batch)
        assert payload[0] == fr.PACKED
        assert plain(decoder.decode(payload)) == plain(batch)


def test_noise_is_written_as_it_is(tmp_path: Path) -> None:
    encoder, _ = pair(codec(tmp_path, level=9))
    noise = random.Random(1).randbytes(1 << 20)
    assert len(encoder.encode(numbered(noise))) < len(noise) + 100


def test_a_batch_beyond_the_limit_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="larger"):
        pair(codec(tmp_path))[0].encode(Batch(layout=bytes(BATCH_BYTES_MAX + 1)))


HEAD = b"\0" + bytes((5,))  # the address 0, a literal


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (b"", "empty payload"),
        (b"\x11", "unknown kind 0x11"),
        (b"\x21", "shorter than its header"),
        (b"\x22", "shorter than its header"),
        (on_ladder(), "none was opened"),
        (on_ladder(flags=0x40), "unknown flags"),
        (on_ladder(flags=fr.ON_BASELINE), "opens nothing"),
        (on_ladder(flags=fr.BEGINS, opening=b"123"), "shorter than its opening"),
        (on_ladder(flags=fr.BEGINS, opening=fr.BEGIN.pack(100, 1)), "100 bytes"),
        (on_ladder(flags=fr.BEGINS, opening=fr.BEGIN.pack(1 << 17, 1)), "131072 bytes"),
        (on_ladder(flags=fr.BEGINS, opening=fr.BEGIN.pack(4096, 1 << 29)), "more than the machine"),
        (on_ladder(flags=fr.BEGINS | fr.ON_BASELINE, opening=OPENING), "not offered"),
        (on_ladder(flags=fr.BEGINS, opening=OPENING, count=1 << 20), "claims"),
        (on_ladder(flags=fr.BEGINS, opening=OPENING, count=1, places=11), "too long"),
        (on_ladder(flags=fr.BEGINS, opening=OPENING, count=1, args=11), "too long"),
        (on_ladder(flags=fr.BEGINS, opening=OPENING, count=1, words=513), "too long"),
        (on_ladder(flags=fr.BEGINS, opening=OPENING, head=bytes(9))[:-1], "shorter than the parts"),
        (on_ladder(flags=fr.BEGINS, opening=OPENING, head=bytes(9)), "none were announced"),
        (on_ladder(flags=fr.BEGINS, opening=OPENING, rest=bytes(9)), "none were announced"),
        (
            on_ladder(
                flags=fr.BEGINS | fr.HEAD_AS_IT_IS | fr.LITERALS_AS_THEY_ARE,
                opening=OPENING, count=1, places=1, head=HEAD, rest=bytes(511),
            ),
            "511 bytes where 512",
        ),
        (
            on_ladder(
                flags=fr.BEGINS | fr.HEAD_AS_IT_IS, opening=OPENING,
                count=1, places=1, head=b"\0\x01",
            ),
            "unknown or impossible",
        ),
        (
            on_ladder(
                flags=fr.BEGINS | fr.HEAD_AS_IT_IS, opening=OPENING,
                count=1, places=1, args=1, head=b"\0\x03\0",
            ),
            "not there",
        ),
    ],
)  # fmt: skip
def test_what_is_no_frame_is_refused_with_its_cause(
    tmp_path: Path, broken: bytes, why: str
) -> None:
    with pytest.raises(PeerProtocolError, match=why):
        pair(codec(tmp_path))[1].decode(broken)


def test_a_page_store_that_is_opened_twice_is_refused(tmp_path: Path) -> None:
    encoder, decoder = pair(codec(tmp_path))
    payload = encoder.encode(numbered(PROGRAM))
    decoder.decode(payload)
    with pytest.raises(PeerProtocolError, match="second time"):
        decoder.decode(payload)


def test_two_seconds_of_fuzzing_find_nothing() -> None:
    script = Path(__file__).with_name("fuzz_hde_decoder.py")
    done = subprocess.run(
        [sys.executable, str(script), "--seconds", "2", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    values = dict(part.split("=") for part in done.stdout.split())
    assert int(values["executions"]) > 100
    assert int(values["accepted"]) > 0
    assert int(values["growth"].removesuffix("MiB")) < 64


def test_the_figures_of_all_rungs_add_up_to_what_was_sent(tmp_path: Path) -> None:
    encoder, _ = pair(codec(tmp_path, level=1))
    assert isinstance(encoder, HdeEncoder)
    wire = raw = pages = 0
    mixed = bytearray(real_pages()["mixed"])
    for turn in range(3):
        mixed[turn * 8192] ^= 1
        for batch in (numbered(bytes(mixed), layout=b"layout"), Batch(b"only a layout")):
            wire += len(encoder.encode(batch))
            raw += batch.nbytes
            pages += batch.page_count
    rows = encoder.figures()
    assert sum(row["wire_bytes"] for row in rows.values()) == wire
    assert sum(row["raw_bytes"] for row in rows.values()) == raw
    assert sum(row["pages"] for row in rows.values()) == pages
    assert rows["same"]["pages"] > 200
    assert all(row["seconds"] >= 0 for row in rows.values())
    assert rows["lookup"]["seconds"] > 0


def second(encode: float = 0.0, link: float = 0.0, read: float = 0.0) -> Pressure:
    return Pressure(encode_s=encode, link_wait_s=link, read_wait_s=read)


def test_a_link_that_outruns_the_encoder_gets_batches_as_they_are(tmp_path: Path) -> None:
    encoder, decoder = pair(codec(tmp_path))
    assert isinstance(encoder, HdeEncoder)
    kinds = []
    for turn in range(12):
        batch = numbered(random.Random(turn).randbytes(1 << 16), first=turn * 16)
        payload = encoder.encode(batch)
        assert plain(decoder.decode(payload)) == plain(batch)
        kinds.append(payload[0])
        encoder.adapt(second(encode=0.2))
    assert encoder.step == UNTOUCHED
    assert kinds[0] == fr.ON_LADDER
    assert kinds[-1] == fr.PLAIN


def test_where_most_pages_are_found_they_are_looked_for_whatever_the_link(tmp_path: Path) -> None:
    encoder, _ = pair(codec(tmp_path))
    batch = numbered(PROGRAM)
    for turn in range(24):
        payload = encoder.encode(batch)
        if turn > 12:
            encoder.adapt(second(encode=0.2))
    assert isinstance(encoder, HdeEncoder)
    assert encoder.step == UNTOUCHED
    assert len(payload) < 150


def test_waiting_for_the_link_raises_the_level_to_the_top() -> None:
    climbing = effort(LEVELS[0], LEVELS[-1], start=-10, store=True)
    for _ in range(40):
        raw = 1 << 20
        climbing.adapt(second(encode=COSTS[climbing.step] / 400e6 * raw, link=2.0), raw, raw // 2)
    assert climbing.step == LEVELS[-1]


def test_an_encoder_that_is_the_bottleneck_steps_down_to_the_lowest() -> None:
    falling = effort(LEVELS[0], LEVELS[-1], start=1, store=True)
    seen = []
    for _ in range(10):
        falling.adapt(second(encode=0.2), 1 << 20, 1 << 19)
        seen.append(falling.step)
    assert seen[-1] == UNTOUCHED
    assert UNPACKED < seen[0] < 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"level": "best"},
        {"level": True},
        {"level": 20},
        {"level_min": 5, "level_max": 1},
        {"level_max": 22},
        {"store": "no"},
        {"share": "some"},
        {"store_bytes": -1},
        {"session_bytes": "much"},
    ],
)
def test_settings_that_are_none_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Settings(**wrong)  # type: ignore[arg-type]


def test_a_session_that_sends_nothing_leaves_nothing(tmp_path: Path) -> None:
    made = codec(tmp_path)
    encoder = made.encoder(leaving())
    encoder.ended(True)  # type: ignore[attr-defined]
    assert made.kept.entries() == []
