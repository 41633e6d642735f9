"""What a register on etcd does besides the contract: fences, leases, changes, members that fail."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from attrs import evolve
from novacron import Fenced, NodeFacts, Ownership
from novacron_consensus_etcd import EtcdError, EtcdRegister, EtcdSettings
from novacron_consensus_etcd._client import Client
from novacron_consensus_etcd.local import LocalCluster, local_cluster, program

T = TypeVar("T")
VM = Ownership(machine="vm1", owner="alpha", epoch=1)


def with_register(
    settings: EtcdSettings, work: Callable[[EtcdRegister], Coroutine[Any, Any, T]], **changes: Any
) -> T:
    async def run() -> T:
        register = EtcdRegister(
            evolve(settings, **changes), NodeFacts(name="alpha", state_dir=Path("/nowhere"))
        )
        try:
            return await asyncio.wait_for(work(register), 60)
        finally:
            await register.close()

    return asyncio.run(run())


async def named(register: EtcdRegister, *nodes: str) -> None:
    """Wait until exactly these nodes live."""
    while True:
        if tuple(await register.nodes()) == nodes:
            return
        await asyncio.sleep(0.02)


def test_a_node_is_named_while_its_lease_lives_and_gone_when_it_closes(etcd: LocalCluster) -> None:
    async def look(register: EtcdRegister) -> None:
        watcher = EtcdRegister(register._settings, NodeFacts(name="beta", state_dir=Path("/n")))
        await watcher.read("vm1")
        await register.read("vm1")
        await named(watcher, "alpha", "beta")
        assert 0 < register.lease_left_s <= register._settings.lease_s
        await register.close()
        assert list(await watcher.nodes()) == ["beta"]
        await watcher.close()

    with_register(etcd.settings, look, prefix="/lease")


def test_a_lease_that_ran_out_is_taken_anew(etcd: LocalCluster) -> None:
    async def lose(register: EtcdRegister) -> None:
        await register.read("vm1")
        await named(register, "alpha")
        first = register._lease
        await register._client.revoke(first)
        await named(register, "alpha")
        assert register._lease != first

    with_register(etcd.settings, lose, prefix="/lost-lease", lease_s=2)


def test_changes_begin_with_what_holds_and_go_on_with_what_comes(etcd: LocalCluster) -> None:
    async def follow(register: EtcdRegister) -> None:
        await register.advance(VM, expected_epoch=0)
        changes = register.changes()
        assert await anext(changes) == ("vm1", VM)
        moved = evolve(VM, owner="beta", epoch=2)
        waiting = asyncio.ensure_future(anext(changes))
        await register.advance(moved, expected_epoch=1)
        assert await waiting == ("vm1", moved)
        waiting = asyncio.ensure_future(anext(changes))
        await register.forget("vm1", epoch=2)
        assert await waiting == ("vm1", None)
        await changes.aclose()  # type: ignore[attr-defined]

    with_register(etcd.settings, follow, prefix="/changes")


@pytest.mark.parametrize("asked", ["read", "owned_by"])
@pytest.mark.parametrize("life", ["same", "next"])
def test_a_change_that_arrives_after_a_read_is_refused(
    etcd: LocalCluster, asked: str, life: str
) -> None:
    late: list[tuple[bytes, int, bytes | None]] = []

    async def work(register: EtcdRegister) -> None:
        swap = register._client.swap

        async def lose(key: bytes, revision: int, value: bytes | None, **others: Any) -> Any:
            if b"/machines/" not in key:
                return await swap(key, revision, value, **others)
            late.append((key, revision, value))
            raise EtcdError("no answer came", elsewhere=False)

        await register.advance(VM, expected_epoch=0)
        register._client.swap = lose  # type: ignore[assignment, method-assign]
        with pytest.raises(EtcdError):
            await register.advance(evolve(VM, owner="beta", epoch=2), expected_epoch=1)
        register._client.swap = swap  # type: ignore[method-assign]
        if life == "next":
            register._settled.clear()
        if asked == "read":
            assert await register.read("vm1") == VM
        else:
            assert list(await register.owned_by("alpha")) == [VM]
        assert await swap(*late[0]) is not None
        assert await register.read("vm1") == VM

    with_register(etcd.settings, work, prefix=f"/late-{asked}-{life}")


@pytest.mark.parametrize(
    "foreign",
    [
        b"not JSON",
        b"[1]",
        b'{"machine":"vm2","owner":"a","epoch":1,"session":""}',
        b'{"machine":"vm1","owner":"a","epoch":0,"session":""}',
        b'{"machine":"vm1","owner":"a","epoch":1,"session":"","more":1}',
        b'{"machine":"vm1","owner":"a","epoch":9223372036854775808,"session":""}',
    ],
)
def test_a_value_that_is_no_record_is_refused_and_left_as_it_is(
    etcd: LocalCluster, foreign: bytes
) -> None:
    async def use(register: EtcdRegister) -> None:
        client = Client(register._settings)
        key = b"/foreign/machines/vm1"
        present = await client.get(key)
        assert await client.swap(key, present.revision, foreign) is None
        with pytest.raises(EtcdError, match="no record of this register") as caught:
            await register.read("vm1")
        assert caught.value.hint
        with pytest.raises(EtcdError):
            await register.advance(evolve(VM, epoch=9), expected_epoch=None)
        with pytest.raises(EtcdError):
            await register.owned_by("alpha")
        assert (await client.get(key)).value == foreign
        await client.close()

    with_register(etcd.settings, use, prefix="/foreign")


def test_more_records_than_a_page_are_all_listed(
    etcd: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novacron_consensus_etcd._client.PAGE_KEYS", 3)

    async def many(register: EtcdRegister) -> None:
        records = [evolve(VM, machine=f"vm{n}") for n in range(10)]
        for record in records:
            await register.advance(record, expected_epoch=0)
        assert list(await register.owned_by("alpha")) == records

    with_register(etcd.settings, many, prefix="/pages")


def test_an_etcd_that_is_away_is_named_with_what_to_do(etcd: LocalCluster) -> None:
    async def call(register: EtcdRegister) -> None:
        with pytest.raises(EtcdError, match=r"127\.0\.0\.1:1 does not answer") as caught:
            await register.read("vm1")
        assert "endpoint status" in caught.value.hint

    with_register(etcd.settings, call, endpoints=["https://127.0.0.1:1"], timeout_s=2)


def test_an_etcd_of_a_stranger_is_not_believed(etcd: LocalCluster, tmp_path: Path) -> None:
    other = LocalCluster(tmp_path / "other")  # never started: only its authority is used

    async def call(register: EtcdRegister) -> None:
        with pytest.raises(EtcdError, match=r"(?i)handshake|certificate|tls|ssl"):
            await register.read("vm1")

    with_register(etcd.settings, call, ca_file=other.settings.ca_file, timeout_s=2)


def test_a_missing_certificate_file_is_a_clear_error(etcd: LocalCluster) -> None:
    async def call(register: EtcdRegister) -> None:
        with pytest.raises(EtcdError, match="key_file: /nowhere/key cannot be read"):
            await register.read("vm1")

    with_register(etcd.settings, call, key_file="/nowhere/key")


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoints": []},
        {"endpoints": ["http://127.0.0.1:2379"]},
        {"endpoints": ["127.0.0.1:2379"]},
        {"prefix": "novacron"},
        {"prefix": "/"},
        {"timeout_s": 0},
        {"lease_s": 1},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        EtcdSettings(**settings)


async def surely(register: EtcdRegister, record: Ownership, expected_epoch: int | None) -> None:
    """Advance, through whatever election is under way."""
    while True:
        try:
            await register.advance(record, expected_epoch=expected_epoch)
            return
        except EtcdError:
            await asyncio.sleep(0.05)


@pytest.mark.slow
def test_a_cluster_of_three_goes_on_without_any_one_and_refuses_without_two(tmp_path: Path) -> None:
    if program() is None:
        pytest.skip("etcd is not installed (scripts/debian-packages installs it)")
    with local_cluster(tmp_path / "etcd", 3) as cluster:

        async def lose(register: EtcdRegister) -> None:
            await register.advance(VM, expected_epoch=0)
            for member in range(3):
                cluster.kill(member)
                epoch = member + 2
                await surely(register, evolve(VM, epoch=epoch), expected_epoch=epoch - 1)
                cluster.start(member)
                cluster.wait_ready()
            with pytest.raises(Fenced):
                await register.advance(evolve(VM, epoch=9), expected_epoch=1)
            for member in list(cluster.processes)[:2]:
                cluster.signal(member, signal.SIGSTOP)
            stopped = evolve(VM, epoch=8)
            with pytest.raises(EtcdError, match="does not answer") as caught:
                await register.advance(stopped, expected_epoch=4)
            assert caught.value.truth
            for process in cluster.processes.values():
                process.send_signal(signal.SIGCONT)
            await surely(register, stopped, expected_epoch=None)
            assert await register.read("vm1") == stopped

        with_register(cluster.settings, lose, timeout_s=3)
