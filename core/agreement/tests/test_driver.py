"""The driver: effects in their order, one sync for many, and what holds when the disk fails."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from attrs import define, field
from novacron_agreement import (
    Commit,
    Effect,
    Note,
    Readable,
    Reason,
    Rejected,
    Restore,
    Save,
    Send,
    keyvalue,
)
from novacron_agreement.driver import LogDriver, NotServing
from novacron_agreement.forwarding import Outcome
from novacron_agreement.keyvalue import KeyValueMachine
from novacron_agreement.life import Life

T = TypeVar("T")


class LonelyCore:
    """A log with one member: what is saved is committed."""

    deadline_ms = None
    leader: str | None = "a"
    members: Mapping[str, str] = {"a": "", "b": "somewhere"}

    def __init__(self, records: Sequence[bytes]) -> None:
        self.records = list(records)
        self.compacted: list[int] = []

    def start(self, now_ms: int) -> list[Effect]:
        found: list[Effect] = [Note("began", f"{len(self.records)} records")]
        for index, record in enumerate(self.records, 1):
            kind, data = record[:1], record[1:]
            found.append(Restore(index, data) if kind == b"s" else Commit(index, data))
        return found

    def receive(self, now_ms: int, sender: str, message: bytes) -> list[Effect]:
        return [Send(sender, b"heard " + message)]

    def propose(self, now_ms: int, ticket: int, command: bytes) -> list[Effect]:
        if command == b"refuse me":
            return [Rejected(ticket, Reason.INVALID, "b")]
        self.records.append(b"c" + command)
        save = Save((b"c" + command,))
        return [Send("b", command), save, Commit(len(self.records), command, ticket)]

    def read(self, now_ms: int, ticket: int) -> list[Effect]:
        return [Readable(ticket, len(self.records))]

    def tick(self, now_ms: int) -> list[Effect]:
        return []

    def compact(self, index: int, snapshot: bytes) -> list[Effect]:
        self.compacted.append(index)
        return []


@define
class Disk:
    """Remembers what was synced and in which order things happened; fails on demand."""

    durable: list[bytes] = field(factory=list)
    happened: list[str] = field(factory=list)
    full: bool = False
    holds: threading.Event = field(factory=threading.Event)
    entered: threading.Event = field(factory=threading.Event)
    _added: list[bytes] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.holds.set()

    def append(self, records: Sequence[bytes]) -> None:
        self._added += records

    def replace(self, records: Sequence[bytes]) -> None:
        self.durable = list(records)

    def sync(self) -> None:
        self.entered.set()
        assert self.holds.wait(10)
        if self.full:
            self._added.clear()
            raise OSError(28, "No space left on device")
        self.happened.append(f"sync {len(self._added)}")
        self.durable += self._added
        self._added = []

    def close(self) -> None:
        self._added = []

    def send(self, to: str, message: bytes) -> None:
        self.happened.append(f"send {to}")

    def know(self, addresses: dict[str, str]) -> None:
        self.happened.append(f"know {' '.join(addresses)}")

    def look_after(self) -> None:
        pass


@contextmanager
def running(disk: Disk, **options: Any) -> Iterator[LogDriver[KeyValueMachine]]:
    def begin() -> Life[KeyValueMachine]:
        return Life(LonelyCore(disk.durable), disk, KeyValueMachine())

    driver = LogDriver("a", begin, disk, **options)
    driver.start()
    try:
        yield driver
    finally:
        disk.holds.set()
        driver.stop()


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(20):
            return await work()

    return asyncio.run(limited())


def put(key: str, value: bytes) -> bytes:
    return keyvalue.put(key, value)


def test_a_proposal_is_answered_when_it_is_durable_and_a_read_sees_it() -> None:
    disk = Disk()
    with running(disk) as driver:

        async def work() -> None:
            answer = keyvalue.answer(await driver.propose(put("k", b"v")))
            assert answer.done
            assert disk.happened == ["know b", "send b", "sync 1"]
            assert await driver.read(lambda machine: machine.get("k")) == b"v"

        run(work)


def test_what_comes_while_the_disk_works_shares_the_next_sync() -> None:
    disk = Disk()
    with running(disk) as driver:

        async def work() -> None:
            disk.holds.clear()
            first = asyncio.ensure_future(driver.propose(put("k", b"0")))
            await asyncio.to_thread(disk.entered.wait)
            rest = [asyncio.ensure_future(driver.propose(put("k", b"1"))) for _ in range(20)]
            await asyncio.sleep(0)
            assert not first.done()
            disk.holds.set()
            await asyncio.gather(first, *rest)
            assert [one for one in disk.happened if one.startswith("sync")] == ["sync 1", "sync 20"]

        run(work)


def test_nothing_that_follows_a_save_happens_before_it_is_durable() -> None:
    disk = Disk()
    with running(disk) as driver:

        async def work() -> None:
            disk.holds.clear()
            waiting = asyncio.ensure_future(driver.propose(put("k", b"0")))
            await asyncio.to_thread(disk.entered.wait)
            driver.receive("c", b"hello")
            assert disk.happened == ["know b", "send b"]
            disk.holds.set()
            await waiting
            await driver.read(lambda machine: None)
            assert disk.happened == ["know b", "send b", "sync 1", "send c"]

        run(work)


def test_a_refused_proposal_says_why_and_who_leads() -> None:
    with running(Disk()) as driver:

        async def work() -> None:
            with pytest.raises(NotServing) as caught:
                await driver.propose(b"refuse me")
            assert (caught.value.reason, caught.value.leader) == (Reason.INVALID, "b")

        run(work)


def test_a_full_disk_loses_nothing_that_was_answered_and_serves_again_when_there_is_room() -> None:
    disk = Disk()
    with running(disk) as driver:

        async def work() -> None:
            await driver.propose(put("k", b"kept"))
            disk.full = True
            with pytest.raises(NotServing, match="No space left") as caught:
                await driver.propose(put("k", b"lost"))
            assert caught.value.reason == Reason.UNCERTAIN
            disk.full = False
            while True:
                try:
                    found = await driver.read(lambda machine: machine.get("k"))
                    break
                except NotServing:
                    await asyncio.sleep(0.01)
            assert found == b"kept"
            assert driver.counts["began"] == 2

        run(work)


def test_a_fault_of_the_core_ends_this_member_and_is_told() -> None:
    with running(Disk()) as driver:

        async def work() -> None:
            def broken(core: Any, now_ms: int, ticket: int) -> list[Effect]:
                raise RuntimeError("a fault of ours")

            settled: queue.Queue[Outcome] = queue.Queue()
            driver.act(broken, settled.put)
            assert (await asyncio.to_thread(settled.get)).reason == Reason.UNCERTAIN
            assert isinstance(driver.failure, RuntimeError)
            with pytest.raises(NotServing, match="a fault of ours"):
                await driver.read(lambda machine: None)

        run(work)


def test_the_core_is_given_a_snapshot_once_enough_was_applied() -> None:
    with running(Disk(), compact_bytes=1000) as driver:

        async def work() -> None:
            for _ in range(10):
                await driver.propose(put("k", b"v" * 200))
            compacted = await driver.inspect(lambda life: life.core.compacted if life else [])
            assert compacted == [4, 8]

        run(work)


def test_where_members_need_equal_snapshots_they_are_taken_at_the_same_indexes() -> None:
    with running(Disk(), compact_every=4, compact_bytes=1) as driver:

        async def work() -> None:
            # Those that are applied together, too: each snapshot is of its own index.
            await asyncio.gather(*(driver.propose(put(f"k{n}", b"v")) for n in range(10)))
            compacted = await driver.inspect(lambda life: life.core.compacted if life else [])
            assert compacted == [4, 8]

        run(work)


def test_another_nodes_query_is_answered_from_the_state_machine() -> None:
    with running(Disk(), answer_query=lambda machine, key: machine.get(key.decode())) as driver:

        async def work() -> None:
            await driver.propose(put("k", b"v"))
            settled: queue.Queue[Outcome] = queue.Queue()
            driver.submit("query", b"k", settled.put)
            assert await asyncio.to_thread(settled.get) == Outcome(answer=b"v")

        run(work)


def test_what_makes_no_sense_to_the_core_is_refused_with_its_words() -> None:
    with running(Disk()) as driver:

        def senseless(core: Any, now_ms: int, ticket: int) -> list[Effect]:
            raise ValueError("nobody would be left to vote")

        settled: queue.Queue[Outcome] = queue.Queue()
        driver.act(senseless, settled.put)
        assert settled.get() == Outcome(Reason.INVALID, b"nobody would be left to vote")


def test_stopping_leaves_nobody_waiting() -> None:
    disk = Disk()
    with running(disk) as driver:

        async def work() -> None:
            disk.holds.clear()
            waiting = asyncio.ensure_future(driver.propose(put("k", b"0")))
            await asyncio.to_thread(disk.entered.wait)
            late = asyncio.ensure_future(driver.propose(put("k", b"1")))
            await asyncio.sleep(0)
            stopping = asyncio.create_task(asyncio.to_thread(driver.stop))
            await asyncio.sleep(0)
            disk.holds.set()
            await stopping
            await asyncio.gather(waiting, late, return_exceptions=True)
            with pytest.raises(NotServing):
                await driver.propose(put("k", b"2"))

        run(work)


def test_a_flood_of_messages_is_dropped_and_not_kept_without_end() -> None:
    disk = Disk()
    with running(disk) as driver:

        async def work() -> None:
            disk.holds.clear()
            waiting = asyncio.ensure_future(driver.propose(put("k", b"0")))
            await asyncio.to_thread(disk.entered.wait)
            flood = b"x" * (1 << 20)
            for _ in range(100):
                driver.receive("b", flood)
            assert 30 < driver.dropped < 100
            disk.holds.set()
            await waiting
            await driver.read(lambda machine: None)
            dropped = driver.dropped
            driver.receive("b", flood)
            assert driver.dropped == dropped

        run(work)
