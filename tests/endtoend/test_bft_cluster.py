"""Members that trust nobody, over real TLS and real files: what their register promises."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster as Processes
from cluster import done, free_port, move
from novacron import ConfigError, Fenced
from novacron_agreement import ownership
from novacron_agreement.peers import HEADER
from novacron_consensus_bft import BftError, BftRegister, BftSection
from novacron_consensus_bft._keys import as_text, load_key, make_key
from real_channels import ChannelNode, enrol
from registers import (
    Registers,
    assert_all_read_alike_and_one_rival_wins,
    assert_it_goes_on_without_its_leader,
    owned,
    run,
)

NAMES = ("a", "b", "c", "d")


class Cluster(Registers[BftRegister]):
    """Members that have keys."""

    def key(self, name: str) -> Path:
        return self.folder / name / "consensus-bft" / "key"

    def public(self, *names: str) -> dict[str, str]:
        return {name: as_text(load_key(self.key(name)).public_key) for name in names}


@asynccontextmanager
async def cluster(
    tmp_path: Path, *more: str, running: tuple[str, ...] = NAMES, **section: Any
) -> AsyncIterator[Cluster]:
    """Four members; ``more`` have keys and are not started."""
    enrol(tmp_path, [*NAMES, *more])
    made = Cluster(
        tmp_path,
        lambda chosen, node: BftRegister(BftSection(**chosen), node),
        {"round_trip_ms": 25, "timeout_s": 20, "writers": "member"},
        lambda register: register.node.driver.leader,
    )
    for number, name in enumerate([*NAMES, *more]):
        # Members may use different schemes.
        make_key(made.key(name), "ml-dsa-65" if number == 1 else "ed25519")
    made.section |= {"members": made.public(*NAMES), **section}
    try:
        for name in running:
            made.start(name)
        yield made
    finally:
        await made.close()


@pytest.mark.slow
def test_what_one_member_writes_every_member_reads_and_of_rivals_one_wins(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path) as made:
            await assert_all_read_alike_and_one_rival_wins(made)

    run(work)


@pytest.mark.slow
def test_a_member_cannot_take_or_spoil_what_is_anothers(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path, writers="owner") as made:
            await made.registers["a"].advance(owned(1), expected_epoch=0)
            liar = made.registers["d"]
            for grab in (owned(2, "d"), owned(2**63 - 1)):
                with pytest.raises(Fenced) as caught:
                    await liar.advance(grab, expected_epoch=None)
                assert (caught.value.facts["owner"], caught.value.facts["epoch"]) == ("a", 1)
            with pytest.raises(Fenced):
                await liar.forget("vm1", epoch=1)
            with pytest.raises(BftError, match="its writer's"):
                await liar.advance(owned(1, "b", "vm2"), expected_epoch=0)
            # It asks in another's name, with a number that would use up all of that one's.
            await liar.node.propose(ownership.forget("", epoch=0, client="a", number=2**62))
            await made.registers["a"].advance(owned(2, "b"), expected_epoch=1)
            await made.registers["b"].advance(owned(2, "b"), expected_epoch=None)
            await made.registers["b"].forget("vm1", epoch=2)
            assert await made.registers["c"].read("vm1") is None

    run(work)


@pytest.mark.slow
def test_three_of_four_go_on_without_their_leader_and_it_finds_back(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path, checkpoint_every=4) as made:
            await assert_it_goes_on_without_its_leader(made)

    run(work)


@pytest.mark.slow
def test_two_of_four_write_nothing_and_the_error_says_what_is_needed(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path, timeout_s=3) as made:
            await made.registers["a"].advance(owned(1), expected_epoch=0)
            await made.stop("b")
            await made.stop("c")
            with pytest.raises(BftError, match="did not serve") as caught:
                await made.registers["a"].advance(owned(2), expected_epoch=1)
            assert "two thirds" in caught.value.hint
            assert "may still be done" in caught.value.truth
            with pytest.raises(BftError):
                await made.registers["d"].read("vm1")
            made.start("b", timeout_s=20)
            assert await made.registers["b"].read("vm1") in (owned(1), owned(2))

    run(work)


@pytest.mark.slow
def test_a_member_that_sends_junk_and_replays_stops_nobody(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path, running=("a", "b", "c")) as made:
            # The fourth one has its certificate and its key, and no honest word.
            liar = made.nodes["d"] = ChannelNode("d", tmp_path, made.addresses)
            heard: list[bytes] = []

            def listen(stream: Any) -> None:
                room = memoryview(bytearray(1 << 16))
                with contextlib.suppress(Exception):
                    while count := stream.receive_into(room):
                        heard.append(bytes(room[:count]))

            liar.channels.serve("bft.novacron/1", listen)

            def lie(to: str) -> None:
                rng = random.Random(to)
                for turn in range(40):
                    with (
                        contextlib.suppress(Exception),
                        contextlib.closing(liar.channels.open(to, "bft.novacron/1")) as stream,
                    ):
                        for _ in range(20):
                            junk = rng.randbytes(rng.randrange(1, 200))
                            stream.send([HEADER.pack(len(junk)), junk])
                            if heard:  # whole frames and torn ones, of others and out of time
                                stream.send([rng.choice(heard)])
                        if turn % 2:
                            stream.send([HEADER.pack(1 << 31), b"too long"])

            lies = [asyncio.create_task(asyncio.to_thread(lie, to)) for to in "abc"]
            for epoch in range(1, 9):
                register = made.registers["abc"[epoch % 3]]
                await register.advance(owned(epoch), expected_epoch=epoch - 1)
            await asyncio.gather(*lies)
            assert len(heard) > 0
            for register in made.registers.values():
                assert await register.read("vm1") == owned(8)
                with pytest.raises(Fenced):
                    await register.advance(owned(8, "d"), expected_epoch=0)
                refused = await register.node.driver.inspect(
                    lambda life: sum(life.core.refused.values()) if life else 0
                )
                assert refused > 0

    run(work)


@pytest.mark.slow
def test_a_member_that_lost_its_log_is_refused_and_another_takes_its_place(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path, "e", checkpoint_every=4) as made:
            for number in range(10):
                await made.registers["a"].advance(owned(1, machine=f"vm{number}"), expected_epoch=0)
            await made.stop("d")
            (tmp_path / "d" / "consensus-bft" / "log").rename(tmp_path / "gone")
            lost = made.start("d")
            with pytest.raises(BftError, match="was used") as caught:
                await lost.read("vm1")
            assert "new name and key" in caught.value.hint
            await made.stop("d")

            made.section["change_to"] = made.public("a", "b", "c", "e")
            for name in "abc":
                await made.stop(name)
                made.start(name)
            joined = made.start("e")
            assert await joined.read("vm9") == owned(1, machine="vm9")
            await joined.advance(owned(2, "e", "vm9"), expected_epoch=1)
            assert await made.registers["b"].read("vm9") == owned(2, "e", "vm9")
            assert sorted(joined.node.driver.members) == ["a", "b", "c", "e"]

    run(work)


def test_who_is_no_member_or_has_another_key_is_told_what_to_do(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path, "e", running=()) as made:
            with pytest.raises(ConfigError, match="e is no member") as caught:
                made.start("e")
            assert "keys new" in caught.value.hint
            made.key("a").rename(tmp_path / "elsewhere")
            with pytest.raises(ConfigError, match="there is no key"):
                made.start("a")
            make_key(made.key("a"), "ed25519")
            with pytest.raises(ConfigError, match=r"has ed25519:.* for a") as caught:
                made.start("a")
            assert "keys show" in caught.value.hint
            made.start("a", key_file=str(tmp_path / "elsewhere"))

    run(work)


@pytest.mark.slow
def test_machines_of_real_nodes_move_and_go_on_moving_when_a_member_is_killed(
    tmp_path: Path,
) -> None:
    keys = "".join(
        f'{name} = "{as_text(make_key(path, "ed25519").public_key)}"\n'
        for name, path in ((name, tmp_path / name / "consensus-bft" / "key") for name in NAMES)
    )
    settings = (
        '[use]\nconsensus = "bft"\n[consensus.bft]\nround_trip_ms = 25\ntimeout_s = 20\n'
        f"[consensus.bft.members]\n{keys}"
    )
    addresses = {name: f"127.0.0.1:{free_port()}" for name in NAMES}
    with Processes(tmp_path, settings, addresses=addresses) as made:
        a, b, c = (made.nodes[name] for name in "abc")
        done(b, b.client.create("vm1", driver="wasm", memory_bytes=8 << 20))
        move(b, c, "vm1")
        a.kill()  # the first view's leader
        move(c, b, "vm1")
        moved = b.client.machine("vm1")
        assert (moved["owner"], moved["state"], moved["epoch"]) == ("b", "running", 3)
        told = made.novacron("b", "consensus", "status")
        assert [member["name"] for member in told["members"]] == list(NAMES)
        assert told["leader"] in ("b", "c", "d")
        assert (told["quorum"], told["may_lie"], told["trouble"]) == (3, 1, "")
        assert told["applied"] == told["committed"] > 0
        assert not any(member["lied"] for member in told["members"])
