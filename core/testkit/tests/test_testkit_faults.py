"""The simulator's faults, each made by hand or certain."""

from __future__ import annotations

from typing import Any

import pytest
from novacron_testkit.experiment import Experiment, nodes_at_most, under_way
from novacron_testkit.liars import Liar
from novacron_testkit.simulator import Faults, NoProgress, Simulator, World

NODES = ("a", "b", "c", "d")


class Listening(World):
    """Remembers what arrives, and which links were cut and healed."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, str, str, Any]] = []
        self.links: list[tuple[str, str, bool]] = []
        self.booted: list[str] = []
        self.gone: list[str] = []

    def boot(self, node: str) -> None:
        self.booted.append(node)

    def crashed(self, node: str) -> None:
        self.gone.append(node)

    def link(self, a: str, b: str, up: bool) -> None:
        self.links.append((a, b, up))

    def deliver(self, src: str, dst: str, message: Any) -> None:
        self.heard.append((self.sim.now, src, dst, message))

    def pairs(self) -> set[str]:
        return {src + dst for _, src, dst, _ in self.heard}


def simulated(faults: Faults | None = None, seed: int = 1) -> tuple[Simulator, Listening]:
    world = Listening()
    return Simulator(seed, faults or Faults(delay_ms=(5, 5)), world, NODES), world


def everybody_speaks(sim: Simulator) -> None:
    for src in sim.nodes:
        for dst in sim.nodes:
            if src != dst:
                sim.send(src, dst, "hello")


def test_a_partition_keeps_groups_apart_and_heals() -> None:
    sim, world = simulated()
    sim.partition(("a", "b"), for_ms=100)
    everybody_speaks(sim)
    sim.advance(50)
    assert world.pairs() == {"ab", "ba", "cd", "dc"}
    assert len(world.links) == 4
    sim.advance(60)
    everybody_speaks(sim)
    sim.advance(50)
    assert len(world.pairs()) == 12
    assert [up for _, _, up in world.links] == [False] * 4 + [True] * 4


def test_a_partition_may_let_one_way_through() -> None:
    sim, world = simulated()
    sim.partition(("a",), one_way=True, for_ms=100)
    everybody_speaks(sim)
    sim.advance(50)
    assert {"ab", "ac", "ad"} & world.pairs() == set()
    assert {"ba", "ca", "da"} <= world.pairs()


def test_partitions_come_by_chance_and_end_when_the_faults_do() -> None:
    trace: list[str] = []
    world = Listening()
    sim = Simulator(3, Faults(partition=0.2, partition_one_way=0.2), world, NODES, trace=trace)
    for _ in range(20):
        everybody_speaks(sim)
        sim.advance(10)
    kinds = {line.split()[1] for line in trace}
    assert "partition" in kinds
    assert any("<->" in line for line in trace)
    assert any(" -> " in line for line in trace)
    sim.quiet()
    sim.advance(100)
    world.heard.clear()
    everybody_speaks(sim)
    sim.advance(100)
    assert len(world.pairs()) == 12


def test_a_stalled_process_goes_on_later_as_if_nothing_had_been() -> None:
    sim, world = simulated()
    ticks: list[int] = []
    sim.at(20, lambda: ticks.append(sim.now), node="b")
    sim.stall("b", 100)
    sim.send("a", "b", "waits")
    sim.send("b", "a", "was sent before")
    sim.advance(200)
    assert [(at, message) for at, _, _, message in world.heard] == [
        (5, "was sent before"),
        (100, "waits"),
    ]
    assert ticks == [100]


def test_a_crash_ends_a_stall() -> None:
    sim, world = simulated()
    sim.stall("b", 10_000)
    sim.crash("b", restart_ms=10)
    sim.advance(20)
    sim.send("a", "b", "hello")
    sim.advance(20)
    assert world.pairs() == {"ab"}


def test_a_clock_may_jump_and_a_steady_one_only_drifts() -> None:
    sim, _ = simulated(Faults(drift=0.1, delay_ms=(5, 5)))
    sim.advance(1000)
    before = sim.steady("a")
    assert before != 1000
    assert 900 <= before <= 1100
    sim.jump("a", -5000)
    assert sim.clock("a") == before - 5000
    assert sim.steady("a") == before
    delay = sim.until("a", before + 500)
    sim.advance(delay)
    assert before + 500 <= sim.steady("a") <= before + 501
    sim.quiet()
    assert sim.clock("a") == sim.steady("a") == before + 500


def test_stalls_and_jumps_come_by_chance() -> None:
    trace: list[str] = []
    sim = Simulator(1, Faults(stall=0.2, jump=0.2), Listening(), NODES, trace=trace)
    for at in range(100):
        sim.at(at, lambda: None, node="a")
    sim.advance(2000)
    assert any("stall a" in line for line in trace)
    assert any("clock of a jumps" in line for line in trace)


def test_a_node_may_join_and_leave_for_good() -> None:
    sim, world = simulated()
    sim.boot()
    sim.join("e")
    everybody_speaks(sim)
    sim.advance(50)
    assert {"ae", "ea"} <= world.pairs()
    sim.crash("b")
    sim.leave("a")
    sim.leave("b")
    sim.advance(5000)
    sim.send("c", "a", "lost")
    assert (sim.is_up("a"), sim.is_up("b")) == (False, False)
    assert world.booted == [*NODES, "e"]
    assert world.gone == ["b", "a"]
    with pytest.raises(ValueError, match="'a' takes part already, or has left"):
        sim.join("a")


def test_a_liar_says_different_things_withholds_and_repeats() -> None:
    sim, world = simulated(Faults(delay_ms=(5, 5), loss=1e-9))
    liar = Liar(
        sim,
        "a",
        forge=lambda message, rng: f"not {message}",
        equivocate=0.5,
        withhold=0.2,
        replay=0.2,
        memory=1000,
    )
    sim.lie("a", liar)
    for _ in range(20):
        liar.hears("what b once said")
    for number in range(200):
        sim.send("a", "b", f"{number}")
        sim.send("a", "c", f"{number}")
        sim.send("b", "c", f"honest {number}")
    sim.advance(100)
    by = {dst: [m for _, src, d, m in world.heard if (src, d) == ("a", dst)] for dst in "bcd"}
    assert by["b"] != by["c"]
    assert any(message.startswith("not") for message in by["b"])
    assert len(by["d"]) > 0  # only replays go there
    assert "what b once said" in by["b"] + by["c"] + by["d"]
    honest = [m for _, src, _, m in world.heard if src == "b"]
    assert honest == [f"honest {number}" for number in range(200)]
    sim.lie("a", None)
    sim.send("a", "b", "the truth")
    sim.advance(100)
    assert world.heard[-1][3] == "the truth"


def test_a_world_must_be_done_within_the_time_it_was_given() -> None:
    class Ticking(World):
        def boot(self, node: str) -> None:
            self.sim.at(10, self.boot, node, node=node)

    with pytest.raises(NoProgress, match="not done after 500 ms"):
        Simulator(1, Faults(), Ticking(), ("a",)).run(
            faults_ms=100, done=lambda: False, quiet_events=10_000, quiet_ms=500
        )


# Experiments.


def lossy(seed: int = 5) -> tuple[list[str], Listening]:
    trace: list[str] = []
    world = Listening()
    sim = Simulator(seed, Faults(loss=0.2, duplicate=0.2), world, NODES, trace=trace)
    for _ in range(10):
        everybody_speaks(sim)
        sim.advance(30)
    return trace, world


def test_an_experiment_tells_which_faults_happened_and_how_long_it_took() -> None:
    with under_way(Experiment()) as free:
        trace, _ = lossy()
    lost = sum(" lost " in line for line in trace)
    assert [name for name in free.happened if name.startswith("loss")] == [
        f"loss:{number}" for number in range(lost)
    ]
    assert free.simulated_ms == 300


def test_a_fault_strikes_at_the_same_place_when_the_others_are_forbidden() -> None:
    whole, _ = lossy()
    lost = [line for line in whole if " lost " in line]
    with under_way(Experiment(only=frozenset({"loss:2"}))) as experiment:
        trace, _ = lossy()
    assert [line for line in trace if " lost " in line] == [lost[2]]
    assert experiment.happened == ["loss:2"]


def test_faults_come_as_often_as_they_should() -> None:
    sim, _ = simulated(Faults(loss=1e-9))
    struck = sum(sim.strikes("own", 0.03) for _ in range(20_000))
    assert 500 < struck < 700
    assert all(sim.strikes("certain", 1.0) for _ in range(10))
    assert not any(sim.strikes("never", 0.0) for _ in range(10))
    sim.quiet()
    assert not sim.strikes("certain", 1.0)


def test_an_experiment_shortens_the_faults_and_takes_nodes_away() -> None:
    with under_way(Experiment(faults_ms=40, nodes=3)) as experiment:
        assert nodes_at_most(5) == 3
        sim, _ = simulated()
        sim.run(faults_ms=100, done=lambda: True)
    assert sim.now == 40
    assert (experiment.asked_faults_ms, experiment.asked_nodes) == (100, 5)
    assert nodes_at_most(5) == 5
