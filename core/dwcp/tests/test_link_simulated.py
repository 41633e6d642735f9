"""Two links in a world that breaks streams, delays, repeats and loses: all arrives once, in order.

Each seed is a world of its own; a failure prints the seed that replays it.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from attrs import define, field
from novacron_dwcp.link import Frame, Greeting, Kind, LinkCore, parse_ack, parse_greeting
from novacron_testkit.simulator import Faults, Simulator, World, explore

WINDOW = 4000
FRAMES = 40
STREAMS = 3
RUNS = int(os.environ.get("NOVACRON_LINK_SEEDS", "500"))
SIDES = ("near", "far")
FAULTS = Faults(cut=0.01, delay_ms=(1, 40), cut_ms=200)
TICK_MS = 20
ORPHAN_MS = 120


@define(eq=False)
class Side:
    """One side's core, its live streams, and what has come of it."""

    core: LinkCore
    asked: list[bytes] = field(factory=list)
    got: list[bytes] = field(factory=list)
    untaken: list[int] = field(factory=list)
    streams: set[int] = field(factory=set)


class Streams(World):
    """Streams between two sides. Each keeps its order and may break at any moment; then what is
    under way on it is lost, and the two sides notice that one after the other."""

    def __init__(self) -> None:
        self.sides = {side: Side(LinkCore(bytes(16), "s1", WINDOW)) for side in SIDES}
        self.opened = 0
        # What is under way on each stream and way, so that it keeps its order.
        self.last: dict[tuple[str, int], int] = {}
        self.broken: set[int] = set()
        self.quiet = False

    def boot(self, node: str) -> None:
        if node == "near":
            self.sim.at(0, self.tick)

    def tick(self) -> None:
        """What goes on all the time at both sides."""
        rng = self.sim.rng
        if len(self.sides["near"].streams) < STREAMS:
            self.open()
        for name, side in self.sides.items():
            side.core.settle(self.sim.now)
            if len(side.asked) < FRAMES and rng.random() < 0.8:
                self.ask(side)
            while side.untaken and (self.quiet or rng.random() < 0.6):
                side.core.taken(side.untaken.pop(0))
            for stream in sorted(side.streams):
                for frame in side.core.take_out(stream, 1 + rng.randrange(2000)):
                    self.put(name, stream, frame)
                if self.quiet or rng.random() < 0.5:
                    self.put(name, stream, side.core.ack().frame())
                if not self.quiet and rng.random() < 0.02:
                    self.break_stream(name, stream)
        self.sim.at(TICK_MS, self.tick)

    def ask(self, side: Side) -> None:
        rng = self.sim.rng
        payload = b"%d:" % len(side.asked) + bytes(rng.randrange(1500))
        kind = rng.choice((Kind.DATA, Kind.DATA, Kind.MESSAGE))
        if kind is Kind.MESSAGE or side.core.room(len(payload)):
            side.asked.append(payload)
            side.core.number(kind, payload)

    def open(self) -> None:
        if self.sim.is_cut("near", "far"):
            return
        self.opened += 1
        hello = self.sides["near"].core.greeting(stream=self.opened)
        self.later(self.greet, self.opened, parse_greeting(hello.payload))

    def greet(self, stream: int, hello: Greeting) -> None:
        far = self.sides["far"]
        welcome = parse_greeting(far.core.greeting(known=True).payload)
        far.core.opened(stream, hello)
        far.streams.add(stream)
        delay = 1 + self.sim.rng.randrange(40)
        self.last["far", stream] = self.sim.now + delay  # what follows comes after it
        self.sim.at(delay, self.welcome, stream, welcome)

    def welcome(self, stream: int, welcome: Greeting) -> None:
        if stream in self.broken:
            return
        near = self.sides["near"]
        near.core.opened(stream, welcome)
        near.streams.add(stream)

    def later(self, call: Any, *args: Any) -> None:
        self.sim.at(1 + self.sim.rng.randrange(40), call, *args)

    def break_stream(self, name: str, stream: int) -> None:
        self.broken.add(stream)
        self.lose(name, stream)
        other = SIDES[1 - SIDES.index(name)]
        self.later(self.lose, other, stream)

    def lose(self, name: str, stream: int) -> None:
        side = self.sides[name]
        if stream in side.streams:
            side.streams.discard(stream)
            side.core.lost(stream, self.sim.now + ORPHAN_MS)

    def link(self, a: str, b: str, up: bool) -> None:
        if not up:
            for stream in sorted(self.sides["near"].streams | self.sides["far"].streams):
                self.break_stream("near", stream)

    def put(self, name: str, stream: int, frame: Frame) -> None:
        """Send on a stream: in its order, whatever the others do."""
        key = (name, stream)
        at = max(self.sim.now + 1 + self.sim.rng.randrange(60), self.last.get(key, 0))
        self.last[key] = at
        # The simulator's own network decides on cuts.
        self.sim.send(name, SIDES[1 - SIDES.index(name)], None)
        self.sim.at(at - self.sim.now, self.arrive, name, stream, frame)

    def arrive(self, name: str, stream: int, frame: Frame) -> None:
        other = self.sides[SIDES[1 - SIDES.index(name)]]
        # A broken stream brings nothing more, but what was read from it before may still be told.
        if stream in self.broken or stream not in other.streams:
            return
        if frame.kind is Kind.ACK:
            other.core.acknowledged(parse_ack(frame))
            return
        for _ in range(2 if self.sim.rng.random() < 0.02 and not self.quiet else 1):
            for ready in other.core.received(frame):
                other.got.append(bytes(ready.payload))
                if ready.kind is Kind.MESSAGE:
                    other.core.taken(ready.sequence)
                else:
                    other.untaken.append(ready.sequence)

    def check(self) -> None:
        for name, side in self.sides.items():
            other = self.sides[SIDES[1 - SIDES.index(name)]]
            assert other.got == side.asked[: len(other.got)]
            assert side.core._held <= WINDOW
            assert side.core._kept_bytes <= WINDOW
            assert side.core.outstanding <= len(side.asked)

    def done(self) -> bool:
        self.quiet = True
        return all(
            len(side.asked) == FRAMES and not side.core.outstanding for side in self.sides.values()
        )


def scenario(seed: int, trace: list[str] | None) -> None:
    world = Streams()
    simulator = Simulator(seed, FAULTS, world, SIDES, trace=trace)
    simulator.run(faults_ms=1500, done=world.done, quiet_events=20_000)
    for side in world.sides.values():
        assert not side.core._confirmed
        assert not side.core._carriers
        assert not side.core._orphans
        assert side.core.unsent_bytes == 0


@pytest.mark.slow
def test_whatever_breaks_all_frames_arrive_once_and_in_order() -> None:
    assert explore(scenario, RUNS) == RUNS


def test_a_hundred_worlds_hold() -> None:
    assert explore(scenario, 100, first_seed=1_000_000) == 100
