from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from novacron_testkit.disk import CorruptDisk, SimulatedDisk, frame, parse
from novacron_testkit.simulator import Crash, Faults, Simulator, World


def disk(seed: int = 1, faults: Faults | None = None) -> SimulatedDisk:
    # Any fault at all: a simulator without faults is one whose faults are over.
    faults = Faults(loss=1e-9) if faults is None else faults
    return SimulatedDisk(Simulator(seed, faults, World(), ("a",)), "a")


def test_what_was_synced_survives_a_crash() -> None:
    for seed in range(50):
        one = disk(seed)
        one.append([b"first", b""])
        assert one.sync() == 0
        one.append([b"lost"])
        one.crash()
        assert one.read()[:2] == [b"first", b""]


def test_what_was_not_synced_is_lost_or_torn_or_kept_and_always_a_beginning() -> None:
    written = [bytes([n]) * 300 for n in range(1, 20)]
    outcomes = set()
    for seed in range(300):
        one = disk(seed)
        one.append(written[:3])
        one.sync()
        one.append(written[3:])
        one.crash()
        records = one.read()
        assert records == written[: len(records)]
        assert len(records) >= 3
        kept = len(records)
        outcomes.add("lost" if kept == 3 else "whole" if kept == len(written) else "torn")
    assert outcomes == {"lost", "whole", "torn"}


def test_after_a_torn_tail_the_log_goes_on_where_it_is_sound() -> None:
    one = disk()
    one.append([b"kept"])
    one.sync()
    one.data += frame(b"torn in two", one.synced_bytes)[:-3]
    assert one.read() == [b"kept"]
    one.append([b"next"])
    one.sync()
    one.crash()
    assert one.read() == [b"kept", b"next"]


def test_a_corrupt_sector_in_the_midst_is_no_torn_tail() -> None:
    for at in range(0, 800, 7):
        one = disk()
        for letter in (b"x", b"y", b"z"):
            one.append([letter * 400])
            one.sync()
        one.spoil(at)
        with pytest.raises(CorruptDisk, match="damaged"):
            one.read()


def test_a_disk_decays_when_chance_says_so_but_never_in_what_was_written_last() -> None:
    one = disk(faults=Faults(corrupt=1.0))
    for record in (b"first", b"second", b"third"):
        one.append([record])
        one.sync()
        if record == b"first":
            assert one.read() == [b"first"]
    with pytest.raises(CorruptDisk):
        one.read()


def test_a_hole_in_what_was_not_synced_is_torn_and_no_damage() -> None:
    one = disk()
    one.append([b"safe"])
    one.sync()
    start = len(one.data)
    one.append([b"x" * 100, b"y" * 100])
    one.data[start : start + 50] = bytes(50)
    assert one.read() == [b"safe"]


def test_a_full_disk_says_so_and_keeps_what_was_safe() -> None:
    one = disk()
    one.append([b"safe"])
    one.sync()
    one = _with(one, Faults(disk=1.0))
    for write in (lambda: one.append([b"more"]), one.sync, lambda: one.replace([b"other"])):
        with pytest.raises(OSError, match="a"):
            write()
    one.crash()
    assert one.read()[0] == b"safe"


def test_replacing_all_records_is_one_step() -> None:
    seen = set()
    for seed in range(50):
        one = disk(seed)
        one.append([b"old"])
        one.sync()
        one = _with(one, Faults(crash=0.5), seed)
        try:
            one.replace([b"new", b"newer"])
        except Crash:
            one.crash()
        seen.add(tuple(one.read()))
    assert seen == {(b"old",), (b"new", b"newer")}


def test_a_slow_disk_tells_how_long_a_write_takes() -> None:
    one = disk(faults=Faults(slow=1.0, slow_ms=40))
    took = set()
    for _ in range(200):
        one.append([b"x"])
        took.add(one.sync())
    assert min(took) >= 0
    assert 30 < max(took) < 40


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(min_value=0))
def test_a_log_cut_anywhere_gives_its_first_records(records: list[bytes], cut: int) -> None:
    data = b"".join(frame(record, 0) for record in records)
    cut %= len(data) + 1
    found, sound = parse(data[:cut])
    assert found == records[: len(found)]
    assert data[:sound] == b"".join(frame(record, 0) for record in found)
    assert parse(data) == (records, len(data))


def _with(old: SimulatedDisk, faults: Faults, seed: int = 1) -> SimulatedDisk:
    new = disk(seed, faults)
    new.data, new.synced_bytes = old.data, old.synced_bytes
    return new
