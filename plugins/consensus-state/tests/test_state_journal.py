"""The journal: torn tails are cut off, damage is refused, and nothing durable is lost."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from novacron_consensus_state._journal import MAGIC, Journal, StateDamaged, frame

RECORDS = [b"one", b"two" * 100, b"three"]


def written(path: Path, *batches: list[bytes]) -> Path:
    journal = Journal(path)
    for batch in batches:
        journal.append(batch)
        journal.sync()
    journal.close()
    return path


def read(path: Path) -> list[bytes]:
    journal = Journal(path)
    journal.close()
    return journal.records


def test_what_was_synced_is_there_again(tmp_path: Path) -> None:
    path = written(tmp_path / "state" / "journal", RECORDS[:1], RECORDS[1:])
    assert read(path) == RECORDS
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_tail_that_is_torn_anywhere_is_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", RECORDS[:2])
    sound = path.read_bytes()
    last = frame(b"the last one", len(sound) - len(MAGIC))
    for length in range(len(last)):
        path.write_bytes(sound + last[:length])
        assert read(path) == RECORDS[:2]
        assert path.read_bytes() == sound
    path.write_bytes(sound + last[:7] + bytes(len(last)))  # the file had grown, its bytes not come
    assert read(path) == RECORDS[:2]


def test_a_damaged_record_that_was_safe_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", *([record] for record in RECORDS))
    sound = path.read_bytes()
    rng = random.Random(4)
    first_bytes = len(MAGIC) + len(frame(RECORDS[0], 0)) + len(frame(RECORDS[1], 0))
    for at in rng.sample(range(len(MAGIC), first_bytes), 60):
        data = bytearray(sound)
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with pytest.raises(StateDamaged, match="it was safe") as caught:
            Journal(path)
        assert "begins a new life" in caught.value.hint
        assert path.read_bytes() == bytes(data)


@pytest.mark.parametrize("data", [b"", b"NOVSTAT2", b"something else altogether"])
def test_a_foreign_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(data)
    with pytest.raises(StateDamaged, match="no state of this release"):
        Journal(path)
    assert path.read_bytes() == data


def test_records_are_replaced_in_one_step(tmp_path: Path) -> None:
    path = written(tmp_path / "journal", RECORDS)
    journal = Journal(path)
    journal.replace([b"all of them"])
    journal.append([b"and more"])
    journal.sync()
    journal.close()
    path.with_name("journal.new").write_bytes(b"half of a new one, before it got its name")
    assert read(path) == [b"all of them", b"and more"]
    assert not path.with_name("journal.new").exists()


FULL = """
import resource, sys
from pathlib import Path
from novacron_consensus_state._journal import Journal
journal = Journal(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    journal.append([b"x" * 1000])
    journal.sync()
except OSError as error:
    sys.exit(7)
"""


@pytest.mark.parametrize("room", [20, 600, 1_000])
def test_a_full_disk_loses_nothing_that_was_synced(tmp_path: Path, room: int) -> None:
    path = written(tmp_path / "journal", RECORDS)
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(path.stat().st_size + room)],
        timeout=60,
        check=False,
    )
    assert ran.returncode == 7
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    assert read(path) == RECORDS


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="state"):
        Journal(tmp_path / "state" / "journal")
    assert os.listdir(tmp_path) == ["state"]
