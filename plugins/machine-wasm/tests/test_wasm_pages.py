"""Tags, digests and the hostile side of an arrival, in this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron import MachineError, PeerProtocolError
from novacron_machine_wasm import _wire as wire
from novacron_machine_wasm._arrival import Arrival
from novacron_machine_wasm._digests import ChunkDigests
from novacron_machine_wasm._fill import fill_pattern
from novacron_machine_wasm._guest import Guest
from novacron_machine_wasm._pages import (
    Tagger,
    changed,
    gather,
    pack_have,
    scatter,
    unpack_have,
)
from novacron_machine_wasm._source import module_bytes
from novacron_machine_wasm._wire import PAGE

MEMORY = 1 << 20
COUNTER = module_bytes("counter")
LENGTH = len(COUNTER)


def some_memory(seed: int, nbytes: int = MEMORY):
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def test_what_differs_is_found_gathered_and_put_in_its_place():
    shadow = some_memory(1)
    memory = shadow.copy()
    for page in (0, 7, 255):
        memory[page * PAGE + 4095] ^= 1
    pages = changed(memory, shadow)
    assert pages.tolist() == [0, 7, 255]
    scatter(shadow, pages, gather(memory, pages))
    assert not len(changed(memory, shadow))


def test_tags_are_equal_for_equal_pages_alone_and_depend_on_the_seed():
    memory = some_memory(2, 64 * PAGE)
    other = memory.copy()
    other[5 * PAGE + 17] ^= 0x80
    tags = Tagger(1).tags(memory)
    assert np.flatnonzero(tags != Tagger(1).tags(other)).tolist() == [5]
    assert not (tags == Tagger(2).tags(memory)).any()
    assert len(np.unique(tags)) == 64


@given(st.binary(max_size=200))
def test_a_hostile_list_of_pages_is_refused(have):
    with pytest.raises(PeerProtocolError):
        unpack_have(have, MEMORY)


def test_a_list_of_pages_is_read_as_it_was_written_and_refused_when_cut_or_of_another_kind():
    memory = some_memory(3)
    have = pack_have(memory)
    seed, tags = unpack_have(have, MEMORY)
    assert (tags == Tagger(seed).tags(memory)).all()
    for bad in (have[:-1], have + b"x", b"X" + have[1:]):
        with pytest.raises(PeerProtocolError):
            unpack_have(bad, MEMORY)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5 * 256 - 1), max_size=20))
def test_digests_kept_up_to_date_equal_digests_made_anew(pages):
    memory = np.zeros(5 << 20, np.uint8)[: (4 << 20) + 65536]
    digests = ChunkDigests(len(memory))
    for page in (page % (len(memory) // PAGE) for page in pages):
        memory[page * PAGE] ^= 0xA5
        digests.touch([page * PAGE // ChunkDigests.CHUNK])
    digests.refresh(memory)
    anew = ChunkDigests(len(memory))
    anew.touch_all()
    anew.refresh(memory)
    assert digests.root() == anew.root()


def test_the_pattern_is_the_same_for_the_same_name_and_neither_noise_nor_zeros():
    pattern = fill_pattern(1 << 20, b"m1")
    assert pattern == fill_pattern(1 << 20, b"m1")
    assert pattern != fill_pattern(1 << 20, b"m2")
    assert len(fill_pattern(1, b"")) == 1
    rows = np.frombuffer(pattern, "<u8").reshape(-1, 8)
    assert len(np.unique(rows[:, :5])) == 256
    assert len(np.unique(rows[:, 5:])) == rows[:, 5:].size


# Arrivals ----------------------------------------------------------------------------------------


def make(module: bytes) -> Guest:
    return Guest(module, MEMORY, 1000, lambda count: b"")


@pytest.fixture
def arrival(tmp_path):
    return Arrival(
        memory_bytes=MEMORY,
        module_digest=blake3(COUNTER).hexdigest(),
        module_bytes=len(COUNTER),
        make=make,
        base=tmp_path / "base",
    )


def module_part(data=COUNTER, offset=0, total=LENGTH) -> bytes:
    return wire.encode_layout(wire.ModulePart(offset=offset, total=total, data=data))


def places(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in numbers)


PAGES = wire.encode_layout(wire.Pages(round=1))


def rest(pages: int, batches: int, **changes) -> wire.Rest:
    known = {
        "globals": {"ticks": 1},
        "ticks": 1,
        "console_bytes": 7,
        "console_input": b"",
        "pages": pages,
        "batches": batches,
    }
    made = wire.Rest(**{**known, **changes})
    digests = ChunkDigests(MEMORY)
    made.digest = wire.proof(digests.root(), made)
    return made


def test_an_arrival_of_nothing_but_zeros_is_whole(arrival):
    arrival.take(module_part(), b"", b"")
    arrival.take(wire.encode_layout(rest(0, 1)), b"", b"")
    arrived = arrival.finish()
    assert (arrived.ticks, arrived.guest.globals()) == (1, {"ticks": 1})


@pytest.mark.parametrize(
    ("layout", "addresses", "pages"),
    [
        (b"", b"", b""),
        (b"\xc1nonsense", b"", b""),
        (PAGES, places(MEMORY), bytes(PAGE)),
        (PAGES, places(2**64 - PAGE), bytes(PAGE)),
        (PAGES, places(1), bytes(PAGE)),
        (PAGES, places(0, 0), bytes(2 * PAGE)),
        (PAGES, places(0), bytes(2 * PAGE)),
        (PAGES, places(0), bytes(PAGE - 1)),
        (PAGES, places(0)[:-1], bytes(PAGE)),
        (PAGES, b"", b""),
        (PAGES, places(*range(0, MEMORY, PAGE)) * 5, bytes(5 * MEMORY)),
        (wire.encode_layout(wire.Pages(round=3)), places(0), bytes(PAGE)),
        (wire.encode_layout(wire.PassEnd(round=-1)), b"", b""),
        (wire.encode_layout(wire.PassEnd(round=0)), places(0), bytes(PAGE)),
        (module_part(), b"", b""),
        (wire.encode_layout(rest(0, 1, globals={})), b"", b""),
        (wire.encode_layout(rest(0, 1, globals={"ticks": 2**63})), b"", b""),
        (wire.encode_layout(rest(0, 1, globals={"ticks": 1, "more": 1})), b"", b""),
        (wire.encode_layout(rest(0, 1, ticks=-1)), b"", b""),
        (wire.encode_layout(rest(0, 1, console_input=bytes(5000))), b"", b""),
        (wire.encode_layout(msgspec.structs.replace(rest(0, 1), digest=b"x")), b"", b""),
    ],
)
def test_a_batch_that_no_sound_source_sends_is_refused(arrival, layout, addresses, pages):
    arrival.take(module_part(), b"", b"")
    with pytest.raises(PeerProtocolError):
        arrival.take(layout, addresses, pages)


@pytest.mark.parametrize(
    "part",
    [
        module_part(data=COUNTER[:-1] + b"\x00"),
        module_part(offset=1),
        module_part(total=1 << 30),
        module_part(data=COUNTER + b"x"),
        module_part(data=b""),
        PAGES,
    ],
)
def test_a_module_that_is_not_the_described_one_is_refused(arrival, part):
    with pytest.raises(PeerProtocolError):
        arrival.take(part, places(0) if part is PAGES else b"", bytes(PAGE if part is PAGES else 0))


def test_nothing_may_come_after_the_last_batch(arrival):
    arrival.take(module_part(), b"", b"")
    arrival.take(wire.encode_layout(rest(0, 1)), b"", b"")
    with pytest.raises(PeerProtocolError, match="after the last"):
        arrival.take(PAGES, places(0), bytes(PAGE))


@pytest.mark.parametrize("made", [rest(1, 1), rest(0, 2), rest(0, 0)])
def test_missing_or_surplus_batches_are_told(arrival, made):
    arrival.take(module_part(), b"", b"")
    arrival.take(wire.encode_layout(made), b"", b"")
    with pytest.raises(MachineError, match="did not arrive whole"):
        arrival.finish()


def test_memory_that_is_not_what_was_sent_is_told(arrival):
    arrival.take(module_part(), b"", b"")
    arrival.take(PAGES, places(PAGE), b"\x01" * PAGE)
    arrival.take(wire.encode_layout(rest(1, 2)), b"", b"")
    with pytest.raises(MachineError, match="not the memory that was sent"):
        arrival.finish()


def test_globals_that_were_changed_on_the_way_are_told(arrival):
    made = rest(0, 1)
    made.globals["ticks"] = 99
    arrival.take(module_part(), b"", b"")
    arrival.take(wire.encode_layout(made), b"", b"")
    with pytest.raises(MachineError, match="not the memory that was sent"):
        arrival.finish()


def test_an_image_of_the_last_stay_that_was_damaged_is_found_out_and_dropped(arrival, tmp_path):
    base = tmp_path / "base"
    base.write_bytes(bytes(MEMORY - 1) + b"\x01")
    assert len(arrival.have()) > 0
    arrival.take(module_part(), b"", b"")
    arrival.take(wire.encode_layout(rest(0, 1)), b"", b"")
    with pytest.raises(MachineError):
        arrival.finish()
    assert not base.exists()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=100), st.binary(max_size=24), st.sampled_from([0, 1, PAGE, 2 * PAGE]))
def test_any_bytes_are_refused_with_an_error_of_ours(layout, addresses, nbytes):
    one = Arrival(
        memory_bytes=MEMORY,
        module_digest="0" * 64,
        module_bytes=8,
        make=make,
        base=Path("/nonexistent/base"),
    )
    with pytest.raises((PeerProtocolError, MachineError)):
        one.take(layout, addresses, bytes(nbytes))


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [("runner", "numpy"), ("_driver", "numpy wasmtime")],
)
def test_what_takes_long_to_import_is_not_imported_before_it_is_needed(module, unwanted):
    code = f"import sys, novacron_machine_wasm.{module}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(unwanted.split()) & set(ran.stdout.split()) == set()
