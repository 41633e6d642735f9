from __future__ import annotations

from typing import Any

import pytest
from novacron_testkit.clock import FakeClock
from novacron_testkit.simulator import Faults, NoProgress, Simulator, World, explore

ROUGH = Faults(
    loss=0.1,
    duplicate=0.1,
    reorder=0.1,
    cut=0.03,
    cut_one_way=0.03,
    crash=0.03,
    disk=0.01,
    skew_ms=50,
)


class Transfer(World):
    """A token goes from a to b: b takes it durably, then acknowledges; a repeats until it knows."""

    def __init__(self, *, broken: bool = False) -> None:
        self.disk: dict[str, Any] = {"a": "mine", "b": 0}
        self.broken = broken

    def boot(self, node: str) -> None:
        if node == "a":
            self.offer()

    def offer(self) -> None:
        if self.disk["a"] == "mine":
            self.sim.send("a", "b", "take")
            self.sim.at(30, self.offer, node="a")

    def deliver(self, src: str, dst: str, message: Any) -> None:
        if dst == "b":
            if self.broken or self.disk["b"] == 0:
                self.disk["b"] += 1
            self.sim.point("b")
            self.sim.send("b", "a", "taken")
        else:
            self.disk["a"] = "given"

    def check(self) -> None:
        assert self.disk["b"] <= 1, f"taken {self.disk['b']} times"

    def done(self) -> bool:
        return bool(self.disk["a"] == "given")


def scenario(seed: int, trace: list[str] | None, *, broken: bool = False) -> int:
    world = Transfer(broken=broken)
    sim = Simulator(seed, ROUGH, world, ("a", "b"), trace=trace)
    return sim.run(faults_ms=300, done=world.done).events


def test_a_sound_protocol_survives_every_seed() -> None:
    assert explore(scenario, 2_000) == 2_000


def test_a_broken_protocol_is_caught_and_its_seed_is_printed_and_replays() -> None:
    def broken(seed: int, trace: list[str] | None) -> None:
        scenario(seed, trace, broken=True)

    with pytest.raises(
        AssertionError, match=r"^seed=\d+ commit=\S+ AssertionError: taken 2"
    ) as one:
        explore(broken, 2_000)
    assert "the replay" not in str(one.value)
    assert "a->b 'take'" in str(one.value)
    seed = int(str(one.value).split()[0].removeprefix("seed="))
    with pytest.raises(AssertionError, match="taken 2 times"):
        broken(seed, None)


def test_the_same_seed_gives_the_same_run() -> None:
    first: list[str] = []
    second: list[str] = []
    assert scenario(7, first) == scenario(7, second)
    assert first == second != []


def test_a_world_that_never_gets_done_makes_no_progress() -> None:
    with pytest.raises(NoProgress, match="nothing is left"):
        Simulator(1, Faults(), World(), ("a",)).run(faults_ms=10, done=lambda: False)


def test_a_timer_dies_with_its_process_and_a_message_may_reach_the_next_life() -> None:
    seen: list[str] = []

    class Listening(World):
        def deliver(self, src: str, dst: str, message: Any) -> None:
            seen.append(message)

    sim = Simulator(1, Faults(delay_ms=(20, 20)), Listening(), ("a", "b"))
    sim.boot()
    sim.at(5, seen.append, "timer of b", node="b")
    sim.send("a", "b", "hello")
    sim.crash("b", restart_ms=10)
    assert not sim.is_up("b")
    sim.advance(100)
    assert seen == ["hello"]
    assert sim.is_up("b")


def test_without_reorder_a_link_keeps_its_order() -> None:
    seen: list[int] = []

    class Listening(World):
        def deliver(self, src: str, dst: str, message: Any) -> None:
            seen.append(message)

    sim = Simulator(3, Faults(duplicate=0.0, loss=1e-9), Listening(), ("a", "b"))
    for number in range(200):
        sim.send("a", "b", number)
    sim.advance(1_000)
    assert seen == list(range(200))


def test_a_cut_link_carries_nothing_until_it_heals_and_the_world_is_told() -> None:
    told: list[tuple[str, str, bool]] = []
    seen: list[str] = []

    class Listening(World):
        def link(self, a: str, b: str, up: bool) -> None:
            told.append((a, b, up))

        def deliver(self, src: str, dst: str, message: Any) -> None:
            seen.append(message)

    sim = Simulator(3, Faults(), Listening(), ("a", "b"))
    sim.cut("a", "b", one_way=True, for_ms=50)
    sim.send("a", "b", "lost")
    sim.send("b", "a", "arrives")
    sim.advance(60)
    sim.send("a", "b", "after")
    sim.advance(60)
    assert seen == ["arrives", "after"]
    assert told == [("a", "b", False), ("a", "b", True)]


def test_a_fake_clock_calls_its_timers_in_order_and_at_their_time() -> None:
    clock = FakeClock()
    seen: list[tuple[str, int]] = []
    clock.at(20, lambda: seen.append(("late", clock.now_ms())))
    clock.at(10, lambda: (seen.append(("early", clock.now_ms())), clock.at(5, tick))[0])

    def tick() -> None:
        seen.append(("nested", clock.now_ms()))

    clock.advance(19)
    assert seen == [("early", 10), ("nested", 15)]
    clock.advance(1)
    assert seen[-1] == ("late", 20)
    assert clock.monotonic() == 0.02
    assert clock.utcnow().isoformat() == "2030-01-01T00:00:00.020000+00:00"
