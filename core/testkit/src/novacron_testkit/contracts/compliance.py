"""The laws of an operation log."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from novacron import LogEntry, OperationLog, Refused

from novacron_testkit.contracts.support import Contract, full_disk, in_doomed_process

T = TypeVar("T")
_DETAIL: dict[str, Any] = {
    "machine": "m1",
    "text": 'quotes " \\ and\nlines, ü 漢',
    "number": 3,
    "ratio": 0.5,
    "yes": True,
    "none": None,
    "list": [1, "two", {"three": []}],
}


class ComplianceContract(Contract):
    """Subclass it, set ``provider``.

    The tests tamper with what is on disk. A log of one JSON document per line is understood;
    override `stored` and `store` for anything else.
    """

    def _file(self, state: Path) -> Path:
        files = [f for f in sorted(state.rglob("*")) if f.is_file() and f.stat().st_size]
        for file in files:
            # One sound line is enough: the others may have been damaged by us.
            for line in file.read_bytes().splitlines():
                try:
                    document = json.loads(line)
                except ValueError:
                    continue
                if isinstance(document, dict) and "digest" in document:
                    return file
        pytest.skip("the log is no file of JSON lines: override stored() and store()")

    def stored(self, state: Path) -> list[bytes]:
        """The entries as they lie below the node's ``state`` folder, in order."""
        return self._file(state).read_bytes().splitlines(keepends=True)

    def store(self, state: Path, entries: list[bytes]) -> None:
        """Put entries, as `stored` gave them, in place of what is there."""
        self._file(state).write_bytes(b"".join(entries))

    def _with(self, tmp_path: Path, work: Callable[[OperationLog], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            log: OperationLog = self.make(tmp_path)
            try:
                return await asyncio.wait_for(work(log), 60)
            finally:
                await log.close()

        return asyncio.run(run())

    def _filled(self, tmp_path: Path, count: int = 6) -> list[LogEntry]:
        async def work(log: OperationLog) -> list[LogEntry]:
            return [
                await log.append(f"op-{n}", "requested", {**_DETAIL, "n": n}) for n in range(count)
            ]

        return self._with(tmp_path, work)

    def _verify(self, tmp_path: Path) -> str:
        """Empty if the chain holds, else the refusal: its text and facts."""

        async def work(log: OperationLog) -> str:
            try:
                log.verify()
            except Refused as refused:
                return f"{refused.message} {refused.facts!r}"
            return ""

        try:
            return self._with(tmp_path, work)
        except Refused as refused:  # a log may look before it opens
            return f"{refused.message} {refused.facts!r}"

    def _named(self, said: str, sequence: int) -> None:
        assert said, f"entry {sequence} was tampered with, and the chain holds"
        assert re.search(rf"(?<!\d){sequence}(?!\d)", said), (
            f"entry {sequence} is the first that is wrong, and the refusal does not name it: {said}"
        )

    def test_an_empty_log_verifies(self, tmp_path: Path) -> None:
        async def work(log: OperationLog) -> None:
            assert log.verify() == 0
            assert list(log.entries()) == []

        self._with(tmp_path, work)

    def test_entries_count_from_one_and_each_holds_the_digest_of_the_one_before(
        self, tmp_path: Path
    ) -> None:
        entries = self._filled(tmp_path)
        assert [e.sequence for e in entries] == [1, 2, 3, 4, 5, 6]
        assert [e.previous for e in entries] == ["0" * 64, *(e.digest for e in entries[:-1])]
        assert all(re.fullmatch("[0-9a-f]{64}", e.digest) for e in entries)
        assert len({e.digest for e in entries}) == 6

    def test_an_entry_says_what_happened_where_and_when(self, tmp_path: Path) -> None:
        async def work(log: OperationLog) -> LogEntry:
            return await log.append("op-1", "refused", _DETAIL)

        entry = self._with(tmp_path, work)
        assert (entry.operation, entry.event, entry.node) == ("op-1", "refused", "a")
        assert dict(entry.detail) == _DETAIL
        time = datetime.fromisoformat(entry.time)
        assert time.utcoffset() == timedelta(0), f"{entry.time} is not UTC"

    def test_what_is_read_is_what_was_appended(self, tmp_path: Path) -> None:
        async def work(log: OperationLog) -> None:
            added = [await log.append("op", f"event-{n}", {"n": n}) for n in range(5)]
            assert list(log.entries()) == added
            assert list(log.entries(after=3)) == added[3:]
            assert list(log.entries(after=5)) == []
            assert log.verify() == 5

        self._with(tmp_path, work)

    def test_the_log_outlives_a_reopening_and_goes_on_where_it_was(self, tmp_path: Path) -> None:
        before = self._filled(tmp_path)
        after = self._filled(tmp_path, 2)
        assert [e.sequence for e in after] == [7, 8]
        assert after[0].previous == before[-1].digest

        async def work(log: OperationLog) -> None:
            assert list(log.entries()) == before + after
            assert log.verify() == 8

        self._with(tmp_path, work)

    def test_an_entry_outlives_a_process_that_is_killed_right_after_it(
        self, tmp_path: Path
    ) -> None:
        async def write() -> None:
            log: OperationLog = self.make(tmp_path)
            for number in range(3):
                await log.append("op", "requested", {"n": number})

        async def read(log: OperationLog) -> None:
            assert [e.detail["n"] for e in log.entries()] == [0, 1, 2]
            assert log.verify() == 3

        in_doomed_process(write, self.deadline_s)
        self._with(tmp_path, read)

    def test_appending_leaves_the_earlier_entries_on_disk_as_they_are(self, tmp_path: Path) -> None:
        self._filled(tmp_path)
        before = self.stored(tmp_path / "a")
        self._filled(tmp_path, 3)
        assert self.stored(tmp_path / "a")[: len(before)] == before

    def test_appends_at_once_all_get_their_place(self, tmp_path: Path) -> None:
        async def work(log: OperationLog) -> None:
            added = await asyncio.gather(
                *(log.append(f"op-{n}", "requested", {"n": n}) for n in range(40))
            )
            assert sorted(e.sequence for e in added) == list(range(1, 41))
            assert sorted(added, key=lambda e: e.sequence) == list(log.entries())
            assert log.verify() == 40

        self._with(tmp_path, work)

    def test_a_removed_entry_is_found_and_named(self, tmp_path: Path) -> None:
        self._filled(tmp_path)
        whole = self.stored(tmp_path / "a")
        for index in range(len(whole) - 1):
            self.store(tmp_path / "a", whole[:index] + whole[index + 1 :])
            self._named(self._verify(tmp_path), index + 1)

    def test_a_doubled_entry_is_found_and_named(self, tmp_path: Path) -> None:
        self._filled(tmp_path)
        whole = self.stored(tmp_path / "a")
        self.store(tmp_path / "a", [*whole[:3], whole[2], *whole[3:]])
        # It stands where entry 4 should stand, and says that it is 3.
        assert re.search(r"(?<!\d)[34](?!\d)", self._verify(tmp_path))

    def test_entries_in_another_order_are_found_and_named(self, tmp_path: Path) -> None:
        self._filled(tmp_path)
        whole = self.stored(tmp_path / "a")
        for index in range(len(whole) - 1):
            swapped = list(whole)
            swapped[index], swapped[index + 1] = swapped[index + 1], swapped[index]
            self.store(tmp_path / "a", swapped)
            self._named(self._verify(tmp_path), index + 1)

    def test_a_changed_field_is_found_and_named(self, tmp_path: Path) -> None:
        self._filled(tmp_path)
        whole = self.stored(tmp_path / "a")
        fields = list(json.loads(whole[2]))
        for field in fields:
            document = json.loads(whole[2])
            document[field] = _other(document[field])
            changed = json.dumps(document).encode() + b"\n"
            self.store(tmp_path / "a", [*whole[:2], changed, *whole[3:]])
            said = self._verify(tmp_path)
            assert said, f"field {field!r} was changed, and the chain holds"
            if field not in ("sequence", "previous"):
                self._named(said, 3)

    def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(self, tmp_path: Path) -> None:
        entries = self._filled(tmp_path, 3)
        whole = self.stored(tmp_path / "a")
        rng = random.Random(1)
        for _ in range(150):
            index = rng.randrange(len(whole) - 1)
            line = bytearray(whole[index])
            line[rng.randrange(len(line))] ^= 1 << rng.randrange(8)
            self.store(tmp_path / "a", [*whole[:index], bytes(line), *whole[index + 1 :]])
            if not self._verify(tmp_path):

                async def work(log: OperationLog) -> list[LogEntry]:
                    return list(log.entries())

                assert self._with(tmp_path, work) == entries, f"unseen: {bytes(line)!r}"

    def test_an_entry_that_cannot_be_written_is_an_oserror_and_is_not_added(
        self, tmp_path: Path
    ) -> None:
        async def work(log: OperationLog) -> None:
            first = await log.append("op-1", "requested", {})
            with pytest.raises(OSError), full_disk():  # noqa: PT011  (any OSError will do)
                await log.append("op-2", "requested", {})
            assert list(log.entries()) == [first]
            second = await log.append("op-3", "requested", {})
            assert (second.sequence, second.previous) == (2, first.digest)
            assert log.verify() == 2

        self._with(tmp_path, work)
        assert self._verify(tmp_path) == ""


def _other(value: Any) -> Any:
    if isinstance(value, str):
        return value[:-1] + ("1" if value[-1:] != "1" else "2")
    if isinstance(value, int):
        return value + 1
    return {**value, "more": 1} if isinstance(value, dict) else "other"
