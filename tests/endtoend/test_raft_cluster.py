"""Members in one process, over real TLS and real files: what a cluster promises to its nodes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from novacron import Conflict, Fenced, NodeFacts
from novacron_consensus_raft import RaftError, RaftRegister, RaftSection
from novacron_consensus_raft._backup import Backup
from novacron_consensus_raft._member import Step, encode
from novacron_consensus_raft._provider import Query
from real_channels import enrol
from registers import (
    Registers,
    assert_all_read_alike_and_one_rival_wins,
    assert_it_goes_on_without_its_leader,
    owned,
    run,
)

NAMES = ("a", "b", "c")


Cluster = Registers[RaftRegister]


def leader_of(register: RaftRegister) -> str | None:
    driver = register.member.driver
    return None if driver is None else driver.leader


@asynccontextmanager
async def cluster(tmp_path: Path, *more: str, **section: Any) -> AsyncIterator[Cluster]:
    """Three members that have begun a cluster; ``more`` are enrolled and not started."""
    enrol(tmp_path, [*NAMES, *more])
    fast = {"heartbeat_ms": 30, "election_ms": 300, "timeout_s": 15, "members": list(NAMES)}
    made = Cluster(
        tmp_path,
        lambda chosen, node: RaftRegister(RaftSection(**chosen), node),
        {**fast, **section},
        leader_of,
    )
    try:
        for name in NAMES:
            made.start(name)
        for name in NAMES:
            await made.registers[name].member.begin(NAMES)
        yield made
    finally:
        await made.close()


@pytest.mark.slow
def test_what_one_node_writes_every_node_reads_and_of_rivals_one_wins(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path) as made:
            await assert_all_read_alike_and_one_rival_wins(made)

    run(work)


@pytest.mark.slow
def test_the_cluster_goes_on_without_its_leader_and_the_leader_finds_back(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path) as made:
            await assert_it_goes_on_without_its_leader(made)

    run(work)


@pytest.mark.slow
def test_without_a_majority_nothing_is_written_and_the_error_says_what_is_needed(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        async with cluster(tmp_path, timeout_s=2) as made:
            await made.registers["a"].advance(owned(1), expected_epoch=0)
            await made.stop("b")
            await made.stop("c")
            with pytest.raises(RaftError, match="did not serve") as caught:
                await made.registers["a"].advance(owned(2), expected_epoch=1)
            assert "majority" in caught.value.hint
            with pytest.raises(RaftError):
                await made.registers["a"].read("vm1")
            made.start("b")
            await made.registers["b"].advance(owned(3), expected_epoch=None)

    run(work)


@pytest.mark.slow
def test_a_node_that_is_no_member_uses_the_cluster_and_may_not_change_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path, "guest") as made:
            guest = made.start("guest")
            await guest.advance(owned(1, "guest"), expected_epoch=0)
            assert await made.registers["b"].read("vm1") == owned(1, "guest")
            with pytest.raises(RaftError, match="guest is no member"):
                await guest.member.step(Step("remove", "c"))

    run(work)


@pytest.mark.slow
def test_a_node_joins_votes_takes_the_lead_and_leaves(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path, "d") as made:
            for number in range(50):
                await made.registers["a"].advance(owned(1, machine=f"vm{number}"), expected_epoch=0)
            joined = made.start("d", members=[])
            with pytest.raises(RaftError, match="in no cluster"):
                await joined.read("vm1")
            await joined.member.join("a", made.addresses["d"])
            status = await joined.member.status()
            assert [(one["name"], one["votes"]) for one in status["members"]] == [
                (name, True) for name in "abcd"
            ]
            await joined.member.step(Step("transfer", "d"))
            assert (await joined.member.status())["role"] == "leader"
            assert await made.registers["b"].read("vm49") == owned(1, machine="vm49")
            aside = await joined.member.leave()
            assert aside.name == "left-1"
            assert (await joined.member.status())["role"] == "none"
            # What has left still uses the cluster.
            await joined.advance(owned(2), expected_epoch=1)
            status = await made.registers["a"].member.status()
            assert [one["name"] for one in status["members"]] == ["a", "b", "c"]

    run(work)


@pytest.mark.slow
def test_a_member_whose_disk_was_replaced_does_not_take_part_by_itself(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path) as made:
            await made.registers["a"].advance(owned(1), expected_epoch=0)
            await made.stop("b")
            (tmp_path / "b" / "consensus-raft" / "log").rename(tmp_path / "gone")
            register = made.start("b")
            assert (await register.member.status())["role"] == "none"
            assert await register.read("vm1") == owned(1)  # it asks the others
            await made.registers["a"].member.step(Step("remove", "b"))
            await register.member.join("a", "")
            assert (await register.member.status())["members"][1]["votes"]

    run(work)


async def failed(register: RaftRegister) -> None:
    """Wait until the log was read, in its thread, and found wrong."""
    while True:
        if (await register.member.status())["role"] == "failed":
            return


@pytest.mark.slow
def test_data_of_another_member_is_refused_with_what_to_do(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path, "d", timeout_s=2) as made:
            await made.registers["a"].advance(owned(1), expected_epoch=0)
            await made.stop("b")
            (tmp_path / "d" / "consensus-raft").mkdir()
            os.rename(
                tmp_path / "b" / "consensus-raft" / "log", tmp_path / "d" / "consensus-raft" / "log"
            )
            register = made.start("d")
            await failed(register)
            with pytest.raises(RaftError, match="belongs to 'b'") as caught:
                await register.read("vm1")
            assert "own folder" in caught.value.hint

    run(work)


def test_a_backup_begins_a_new_cluster_with_what_it_holds(tmp_path: Path) -> None:
    async def work() -> None:
        old = RaftRegister(RaftSection(), NodeFacts(name="a", state_dir=tmp_path / "old"))
        await old.member.begin(["a"])
        await old.advance(owned(7), expected_epoch=0)
        state = await old.member.ask("query", encode(Query("snapshot")))
        Backup.of("novacron", "2026-01-01T00:00:00Z", state).write(tmp_path / "backup")
        with pytest.raises(Conflict):
            await old.member.restore(Backup.read(tmp_path / "backup"))
        await old.close()
        new = RaftRegister(RaftSection(), NodeFacts(name="b", state_dir=tmp_path / "new"))
        await new.member.restore(Backup.read(tmp_path / "backup"))
        assert await new.read("vm1") == owned(7)
        with pytest.raises(Fenced):
            await new.advance(owned(7, "b"), expected_epoch=0)
        await new.advance(owned(8, "b"), expected_epoch=7)
        await new.close()

    run(work)


@pytest.mark.parametrize("damage", [b"", b"not a backup", b"cut", b"flip"])
def test_a_damaged_backup_is_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "backup"
    Backup.of("novacron", "2026-01-01T00:00:00Z", b"state" * 100).write(path)
    with pytest.raises(FileExistsError):
        Backup.of("novacron", "2026-01-01T00:00:00Z", b"other").write(path)
    data = path.read_bytes()
    path.write_bytes(
        {b"cut": data[:-5], b"flip": data.replace(b"statestate", b"statestatf", 1)}.get(
            damage, damage
        )
    )
    with pytest.raises(Exception, match="backup"):
        Backup.read(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"cluster": "No Name"},
        {"election_ms": 100, "heartbeat_ms": 100},
        {"timeout_s": 0},
        {"compact_mib": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        RaftSection(**settings)
