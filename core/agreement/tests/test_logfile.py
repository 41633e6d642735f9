"""The log's files: what was synced is there, a torn tail is cut, damage is refused."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_agreement.framing import Damaged, frame, frames, parse
from novacron_agreement.logfile import LogDamaged, LogFile
from novacron_testkit.contracts.support import full_disk

RECORDS = st.lists(st.binary(min_size=1, max_size=60), max_size=8)


def reopened(folder: Path) -> list[bytes]:
    log = LogFile(folder)
    log.close()
    return log.records


def written(folder: Path, *batches: list[bytes], segment_bytes: int = 1 << 20) -> None:
    log = LogFile(folder, segment_bytes=segment_bytes)
    for batch in batches:
        log.append(batch)
        log.sync()
    log.close()


def test_what_was_appended_is_read_in_its_order(tmp_path: Path) -> None:
    written(tmp_path, [b"one", b"two"], [b"three"])
    assert reopened(tmp_path) == [b"one", b"two", b"three"]
    written(tmp_path, [b"four"])
    assert reopened(tmp_path) == [b"one", b"two", b"three", b"four"]


def test_a_long_log_goes_on_in_further_segments(tmp_path: Path) -> None:
    batches = [[bytes([n]) * 50] for n in range(1, 40)]
    written(tmp_path, *batches, segment_bytes=300)
    assert len(list(tmp_path.glob("*.log"))) > 4
    assert reopened(tmp_path) == [record for batch in batches for record in batch]


def test_a_replacement_takes_the_place_of_all_segments(tmp_path: Path) -> None:
    log = LogFile(tmp_path, segment_bytes=100)
    for n in range(1, 9):
        log.append([bytes([n]) * 50])
    log.replace([b"snapshot", b"tail"])
    assert len(list(tmp_path.glob("*.log"))) == 1
    log.append([b"more"])
    log.sync()
    log.close()
    assert reopened(tmp_path) == [b"snapshot", b"tail", b"more"]


def test_a_replacement_that_was_cut_short_leaves_either_the_old_or_the_new(tmp_path: Path) -> None:
    old, both = tmp_path / "old", tmp_path / "both"
    written(old, [b"old"])
    (old / "00000002.log.new").write_bytes(b"half of it")
    assert reopened(old) == [b"old"]
    assert not list(old.glob("*.new"))
    # It was renamed, and the segments before it were not removed.
    written(both, [b"old"])
    first = (both / "00000001.log").read_bytes()
    log = LogFile(both)
    log.replace([b"new"])
    log.close()
    (both / "00000001.log").write_bytes(first)
    assert reopened(both) == [b"new"]
    assert not (both / "00000001.log").exists()


def test_the_tail_may_be_torn_at_every_byte(tmp_path: Path) -> None:
    written(tmp_path / "whole", [b"one", b"two"], [b"three" * 5])
    file = tmp_path / "whole" / "00000001.log"
    data = file.read_bytes().rstrip(b"\x00")
    start = len(data) - len(frame(b"three" * 5, 0))
    for cut in range(start, len(data)):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        (folder / "00000001.log").write_bytes(data[:cut])
        log = LogFile(folder)
        assert log.records == [b"one", b"two"]
        assert log.torn_bytes <= cut - start
        log.append([b"next"])
        log.sync()
        log.close()
        assert reopened(folder) == [b"one", b"two", b"next"]
        shutil.rmtree(folder)


def test_damage_in_what_was_safe_is_refused_with_the_next_step(tmp_path: Path) -> None:
    written(tmp_path, [b"one" * 9], [b"two" * 9], [b"three" * 9])
    file = tmp_path / "00000001.log"
    sound = file.read_bytes()
    first, second = sound.index(b"one"), sound.index(b"two")
    for at in (first, second, second - 14):
        file.write_bytes(sound[:at] + bytes([sound[at] ^ 0x40]) + sound[at + 1 :])
        with pytest.raises(LogDamaged, match="was safe and is damaged") as refused:
            LogFile(tmp_path)
        assert "join again" in refused.value.hint
        assert file.read_bytes()[:at] == sound[:at]
    file.write_bytes(sound)
    assert len(reopened(tmp_path)) == 3


def test_damage_in_a_replacement_is_refused_though_nothing_follows_it(tmp_path: Path) -> None:
    log = LogFile(tmp_path)
    log.replace([b"snapshot" * 9])
    log.close()
    (file,) = tmp_path.glob("*.log")
    sound = file.read_bytes()
    at = sound.index(b"snapshot")
    file.write_bytes(sound[:at] + b"S" + sound[at + 1 :])
    with pytest.raises(LogDamaged, match="was safe and is damaged"):
        LogFile(tmp_path)
    file.write_bytes(sound[:at])
    with pytest.raises(LogDamaged, match="was safe and is damaged"):
        LogFile(tmp_path)


def test_damage_in_a_segment_that_is_not_the_last_is_refused(tmp_path: Path) -> None:
    written(tmp_path, *([bytes([n]) * 50] for n in range(1, 9)), segment_bytes=100)
    file = sorted(tmp_path.glob("*.log"))[1]
    data = bytearray(file.read_bytes())
    data[-1 - (len(data) - len(bytes(data).rstrip(b"\x00")))] ^= 1
    file.write_bytes(data)
    with pytest.raises(LogDamaged):
        LogFile(tmp_path)


def test_a_missing_or_foreign_segment_is_refused(tmp_path: Path) -> None:
    written(tmp_path, *([bytes([n]) * 50] for n in range(1, 9)), segment_bytes=100)
    files = sorted(tmp_path.glob("*.log"))
    held = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(LogDamaged, match="is missing"):
        LogFile(tmp_path)
    files[1].write_bytes(b"something else")
    with pytest.raises(LogDamaged, match="header"):
        LogFile(tmp_path)
    files[1].write_bytes(held)
    files[0].unlink()
    with pytest.raises(LogDamaged, match="the segments before it are gone"):
        LogFile(tmp_path)


def test_two_processes_do_not_use_one_log(tmp_path: Path) -> None:
    log = LogFile(tmp_path)
    with pytest.raises(BlockingIOError, match="another process"):
        LogFile(tmp_path)
    log.close()
    log.close()
    assert reopened(tmp_path) == []


@pytest.mark.parametrize("what", ["append", "replace"])
def test_a_full_disk_is_an_error_and_what_was_safe_stays(tmp_path: Path, what: str) -> None:
    written(tmp_path, [b"one"])
    log = LogFile(tmp_path)
    with pytest.raises(OSError, match="File too large"), full_disk():
        getattr(log, what)([b"two" * 1000])
    with pytest.raises(RuntimeError, match="not usable any more"):
        log.append([b"three"])
    log.close()
    assert reopened(tmp_path) == [b"one"]
    written(tmp_path, [b"two"])
    assert reopened(tmp_path) == [b"one", b"two"]


def test_after_a_sync_that_failed_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(file: int) -> None:
        raise OSError(5, "Input/output error")

    log = LogFile(tmp_path)
    log.append([b"one"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(OSError, match="Input/output error"):
            log.sync()
    with pytest.raises(RuntimeError, match="not usable any more"):
        log.sync()
    log.close()


@given(RECORDS, RECORDS, st.integers(0, 400))
@settings(max_examples=200, deadline=None)
def test_a_torn_file_gives_a_beginning_of_what_was_written(
    safe: list[bytes], unsafe: list[bytes], cut: int
) -> None:
    synced = frames(safe, 0)
    data = synced + frames(unsafe, len(synced))
    torn = data[: max(len(synced), len(data) - cut)]
    records, sound = parse(torn + bytes(64))
    assert records == (safe + unsafe)[: len(records)]
    assert len(records) >= len(safe)
    assert frames(safe, 0) == data[: len(synced)]
    assert sound <= len(torn)


@given(RECORDS, st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_bit_never_gives_a_record_that_was_not_written(
    written: list[bytes], data: st.DataObject
) -> None:
    sound = b""
    for record in written:
        sound += frame(record, len(sound))
    if not sound:
        return
    at = data.draw(st.integers(0, len(sound) - 1))
    spoilt = sound[:at] + bytes([sound[at] ^ (1 << data.draw(st.integers(0, 7)))]) + sound[at + 1 :]
    with contextlib.suppress(Damaged):
        records, _ = parse(spoilt)
        assert records == written[: len(records)]


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        _, sound = parse(data)
    except Damaged:
        return
    assert 0 <= sound <= len(data)


WRITER = """
import sys
from pathlib import Path
from novacron_agreement.logfile import LogFile
log = LogFile(Path(sys.argv[1]), segment_bytes=2000)
number = len(log.records)
while True:
    number += 1
    if number % 97 == 0:
        log.replace([str(n).encode() for n in range(1, number + 1)])
    else:
        log.append([str(number).encode()])
        log.sync()
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


@pytest.mark.slow
def test_a_process_that_is_killed_has_kept_what_it_said(tmp_path: Path) -> None:
    said = 0
    for life in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        with writer.stdout as lines:
            for _ in range(40 + 37 * life):
                said = int(lines.readline())
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait(30)
            rest = lines.read().rpartition("\n")[0]
        said = int(rest.rpartition("\n")[2]) if rest else said
        numbers = [int(record) for record in reopened(tmp_path)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= said
