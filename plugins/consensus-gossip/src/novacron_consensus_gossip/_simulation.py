"""The simulation of `GossipCore` that ``novacron simulate gossip`` runs.

Each seed lets a few members join through every fault that the simulator has, then stops the faults,
requires that all agree, and goes through some chapters chosen by the seed; each says what must hold
in it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Final

from novacron_testkit.simulation import Simulation

from novacron_consensus_gossip import _core
from novacron_consensus_gossip._simulation_mutants import MUTANTS
from novacron_consensus_gossip._simulation_world import PERIOD, TIMING, Cluster, Packet, make
from novacron_consensus_gossip._values import State
from novacron_consensus_gossip._wire import Alive, Doubt, Gossip, encode


class Story:
    """One seed's run after the faults."""

    def __init__(self, world: Cluster) -> None:
        self.world = world
        self.gone: dict[str, State] = {}

    # Helpers.

    def go(self, periods: float) -> None:
        self.world.sim.advance(int(periods * PERIOD))

    def until(self, periods: float, done: Callable[[], bool], why: Callable[[], str]) -> float:
        """Go on until it is done; returns after how many periods. Fails if it takes longer."""
        begun = self.world.sim.now
        while not done():
            took = (self.world.sim.now - begun) / PERIOD
            assert took < periods, f"after {took:.0f} periods: {why()}"
            self.go(0.5)
        return (self.world.sim.now - begun) / PERIOD

    def settle(self, periods: float = 60) -> None:
        """All agree with the truth."""
        self.until(periods, lambda: not self._dissent(), self._dissent)

    def _dissent(self) -> str:
        return self.world.dissent(self.gone)

    def recover(self) -> None:
        """All are in good health again after the faults."""
        world = self.world

        def ill() -> dict[str, int]:
            health = {node: world.core(node).health for node in world.running}
            return {node: score for node, score in health.items() if score}

        self.until(80, lambda: not ill(), lambda: f"health: {ill()}")

    def one(self) -> str:
        return self.world.rng.choice(self.world.running)

    def two(self) -> tuple[str, str]:
        first, second = self.world.rng.sample(self.world.running, 2)
        return first, second

    def cut(self, some: list[str], others: list[str], periods: float, one_way: bool) -> None:
        for a in some:
            for b in others:
                self.world.sim.cut(a, b, one_way=one_way, for_ms=int(periods * PERIOD))

    # Chapters.

    def rest(self) -> None:
        """Nothing happens: nobody is doubted, and little is said."""
        world = self.world
        self.go(4 * TIMING.retransmit)  # old news dies away
        world.clear()
        members = len(world.running)
        periods = 2 * members + 2
        self.go(periods)
        assert not world.suspected_held, f"{world.suspected_held} without a reason"
        for node in world.running:
            desk = world.core(node)._desk
            assert not len(desk.news), f"{node} still has news"
            probes = world.core(node)._detector.probes
            assert len(probes) < 4, f"{node} still waits for {len(probes)} answers"
            assert len(desk.timers) < 12, f"{node} has {len(desk.timers)} timers"
            # A ping and an answer each period; the rest is comparing.
            most = 2.6 * periods + 8
            assert world.sent[node] <= most, f"{node} sent {world.sent[node]} in {periods} periods"
            for other in world.running:
                reached = world.pings[node, other]
                assert other == node or reached, f"{node} probed {other} in no period"

    def kill(self) -> None:
        """A member is killed: all learn it soon, nobody else is doubted, nobody thinks itself ill;
        it is remembered, then forgotten."""
        world = self.world
        if len(world.running) < 4:
            return
        self.recover()
        world.clear()
        victim = self.one()
        name = world.names[victim]
        world.kill(victim)
        self.gone[name] = State.DEAD
        took = self.until(14, lambda: self._all_hold(name, State.DEAD), self._dissent)
        assert took >= TIMING.suspicion_floor, f"{name} was dead after {took} periods"
        assert {held for _, held in world.suspected_held} == {name}
        worst = {node: world.worst_health[node] for node in world.running}
        assert not any(worst.values()), f"{worst} though only {name} failed"
        if world.rng.random() < 0.3:
            self.go(TIMING.forget_ms / PERIOD + 40)
            left = [node for node in world.running if world.held(node, name) is not None]
            assert not left, f"{left} still remember {name}"
            self.gone.pop(name)
        elif world.rng.random() < 0.7:
            self.come_back(victim)

    def _all_hold(self, name: str, state: State) -> bool:
        held = (self.world.held(node, name) for node in self.world.running)
        return all(one is None or one.state is state for one in held)

    def come_back(self, victim: str) -> None:
        """With its disk or with an empty one, it is a member again."""
        world = self.world
        if world.rng.random() < 0.5:
            world.saved[victim] = ()
        world.boot(victim)
        self.gone.pop(world.names[victim], None)
        self.settle(40)

    def leave(self) -> None:
        """A member says goodbye: it has left for everybody, and nobody holds it dead."""
        world = self.world
        if len(world.running) < 4:
            return
        world.clear()
        leaver = self.one()
        name = world.names[leaver]
        world.perform(leaver, world.core(leaver).leave(world.clock(leaver)))
        self.gone[name] = State.LEFT
        if world.rng.random() < 0.5:  # it ends at once: those whom it told tell the others
            world.kill(leaver)
            self.settle(6)
            assert not world.dead_held, f"{world.dead_held} dead, who said goodbye"
            return
        # Its own goodbye comes back to it.
        goodbye = Doubt(name, world.core(leaver).incarnation, State.LEFT, name)
        other = next(node for node in world.running if node != leaver)
        echo = Packet(False, encode(Gossip(world.names[other], (goodbye,))))
        world.deliver(other, leaver, echo)
        self.until(12, lambda: world.core(leaver).closed, lambda: f"{name} does not end")
        self.settle(6)
        assert not world.dead_held, f"{world.dead_held} dead, who said goodbye"
        world.kill(leaver)

    def part(self) -> None:
        """The cluster falls apart for long, then heals: all are back, and on the way back nobody
        is held dead."""
        world = self.world
        running = list(world.running)
        world.rng.shuffle(running)
        half = len(running) // 2
        self.cut(running[:half], running[half:], 40, one_way=False)
        self.go(41)
        world.clear()
        self.settle(80)
        assert not world.dead_held, f"{world.dead_held} though all was well again"

    def broken_link(self) -> None:
        """Two members cannot reach each other: the others reach both, so nobody is doubted."""
        world = self.world
        if len(world.running) < 4:
            return
        world.clear()
        a, b = self.two()
        self.cut([a], [b], 25, one_way=world.rng.random() < 0.5)
        self.go(25)
        assert not world.suspected_held, f"{world.suspected_held} by one broken link"

    def deaf(self) -> None:
        """A member hears nobody: it does not trust its own judgement, and takes its time."""
        world = self.world
        if len(world.running) < 5:
            return
        self.recover()
        world.clear()
        deaf = self.one()
        others = [node for node in world.running if node != deaf]
        self.cut(others, [deaf], 30, one_way=True)
        self.go(20)
        name = world.names[deaf]
        assert world.worst_health[deaf] >= TIMING.health_max // 2, "it thinks that all is well"
        long = int(TIMING.suspicion_floor * TIMING.suspicion_stretch * PERIOD)
        for held, at in world.dead_held.items():
            took = at - world.suspected_held.get(held, at)
            assert held[0] != deaf or took >= long, f"{held} after {took} ms without confirmation"
        wrong = {held for held in world.dead_held if held[0] != deaf and held[1] != name}
        assert not wrong, f"{wrong} because one was deaf"
        sent = sum(world.pings[deaf, other] for other in others)
        assert sent < 15, f"it sent {sent} pings in 20 periods"
        self.go(11)
        self.settle(80)

    def stall(self) -> None:
        """A process is stopped and goes on: others may doubt it, but it doubts nobody."""
        world = self.world
        world.clear()
        stalled = self.one()
        while not world.core(stalled)._detector.probes:  # an answer is under way
            self.go(0.02)
        long = world.rng.choice((2.5, 8, 30))
        world.stalled_hear_nothing = world.rng.random() < 0.5
        world.stalled[stalled] = world.sim.now + int(long * PERIOD)
        self.go(long + 10)
        wrong = [key for key in world.suspected_held if key[1] != world.names[stalled]]
        assert not wrong, f"{wrong} though {stalled} was away"
        self.settle(60)

    def after_a_month(self) -> None:
        """A process comes back when one that it knew is forgotten: that one stays forgotten."""
        world = self.world
        if len(world.running) < 5:
            return
        sleeper, victim = self.two()
        name = world.names[victim]
        world.kill(victim)
        away = TIMING.forget_ms / PERIOD + 60
        world.stalled[sleeper] = world.sim.now + int(away * PERIOD)
        self.go(away - 2)
        world.clear()
        self.go(20)
        back = [node for node, held in world.suspected_held if held == name]
        back += [node for node in world.running if world.held(node, name) is not None]
        assert not back, f"{name} was forgotten, and came back to {back}"
        self.gone.pop(name, None)
        self.settle(60)

    def tell_all(self) -> None:
        """Broadcasts reach everybody once, and after some of them without a copy too many."""
        world = self.world
        self.go(4)
        for number in range(6):  # some get lost, so that the ways come to differ by direction
            a, b = self.two()
            self.cut([a], [b], 0.4, one_way=True)
            self._broadcast(self.one(), f"lost {number} {world.sim.now}".encode())
            self.go(1)
        self.go(3)
        for number in range(10):
            source = self.one()
            before = self._repeats()
            body = f"{source} {number} {world.sim.now}".encode()
            self._broadcast(source, body)
            self._reaches_all(body, source)
            self.go(0.5)
            if number >= 7:
                repeated = self._repeats() - before
                assert not repeated, f"{repeated} copies too many of {body!r}"

    def _broadcast(self, source: str, body: bytes) -> None:
        core = self.world.core(source)
        self.world.perform(source, core.broadcast(self.world.clock(source), "test", body))

    def _reaches_all(self, body: bytes, source: str) -> None:
        self.until(3, lambda: self._all_got(body, source), lambda: f"{body!r} is not there")

    def _all_got(self, body: bytes, source: str) -> bool:
        return all(self.world.got[node][body] for node in self.world.running if node != source)

    def _repeats(self) -> int:
        world = self.world
        return sum(world.core(node).counts["broadcasts-repeated"] for node in world.running)

    def broken_tree(self) -> None:
        """One dies in the midst of broadcasts: the others get them all the same, and soon."""
        world = self.world
        if len(world.running) < 5:
            return
        self.tell_all()
        source, victim = self.two()
        world.kill(victim)
        self.gone[world.names[victim]] = State.DEAD
        for number in range(3):
            body = f"after {victim} {number} {world.sim.now}".encode()
            self._broadcast(source, body)
            self._reaches_all(body, source)
        self.settle()

    def missed(self) -> None:
        """One that was cut off gets what was broadcast meanwhile, while others keep it."""
        world = self.world
        source, other = self.two()
        self.cut([other], [node for node in world.running if node != other], 3, one_way=False)
        body = f"missed {world.sim.now}".encode()
        self._broadcast(source, body)
        self.until(35, lambda: self._all_got(body, source), lambda: f"{other} missed {body!r}")
        self.settle()

    def keep_little(self) -> None:
        """Large broadcasts are kept within bounds."""
        world = self.world
        source = self.one()
        for number in range(8):
            self._broadcast(source, b"%d " % number + bytes(1_000))
            self.go(0.5)
        kept = {node: world.core(node)._tree._kept_bytes for node in world.running}
        assert max(kept.values()) <= TIMING.keep_bytes, f"kept: {kept}"

    def new_tags(self) -> None:
        """What a member tells of itself reaches all."""
        world = self.world
        teller = self.one()
        tags = {"load": str(world.rng.randrange(100))}
        world.perform(teller, world.core(teller).set_tags(world.clock(teller), tags))
        self.settle(20)
        name = world.names[teller]
        for node in world.running:
            found = world.held(node, name)
            held = {} if found is None else dict(found.tags)
            assert held == tags, f"{node} holds {held} of {name}"

    def two_of_a_name(self) -> None:
        """A second process with a name that is in use: one of the two ends, and says why."""
        world = self.world
        if len(world.running) < 4:
            return
        keeper = self.one()
        twin = "p99"
        world.processes.append(twin)
        world.names[twin] = world.names[keeper]
        world.saved[twin] = ()
        world.cores[twin] = None
        world.sim._up[twin] = True
        world.boot(twin)
        both = (keeper, twin)
        self.until(
            60,
            lambda: any(world.core(one).closed for one in both),
            lambda: f"both go on with {[world.core(one).incarnation for one in both]}",
        )
        assert any(note.kind == "name-taken" for note in world.notes)
        for one in both:
            if world.core(one).closed:
                world.kill(one)
        self.settle(80)
        if twin not in world.running:
            del world.names[twin], world.cores[twin]

    def flood(self) -> None:
        """Somebody makes members up: no more are taken than may be, and the others stay."""
        world = self.world
        victim = self.one()
        for number in range(40):
            made_up = Alive(f"x{number}", 0, f"nowhere{number}", 1, {})
            world.published[made_up.name] = 0
            self.gone[made_up.name] = State.DEAD
            data = encode(Gossip("liar", (made_up,)))
            world.deliver(world.processes[0], victim, Packet(False, data))
            world.deliver(world.processes[0], victim, Packet(False, data[: number + 1]))
        for node in world.running:
            assert len(world.core(node).members) <= TIMING.members_max, f"{node} took them all"
        self.settle(120)


CHAPTERS: Final = (
    Story.rest,
    Story.kill,
    Story.leave,
    Story.part,
    Story.broken_link,
    Story.deaf,
    Story.stall,
    Story.after_a_month,
    Story.tell_all,
    Story.broken_tree,
    Story.missed,
    Story.keep_little,
    Story.new_tags,
    Story.two_of_a_name,
    Story.flood,
)


def scenario(seed: int, trace: list[str] | None = None, core: ModuleType = _core) -> None:
    """Run one seed. Raises AssertionError if a law is broken."""
    world = make(core, seed, trace)
    sim = world.sim
    sim.boot()
    sim.advance(world.rng.randrange(2, 16) * PERIOD)
    sim.quiet()
    story = Story(world)
    story.settle()
    story.go(2)  # what was under way during the faults has arrived
    chapter = CHAPTERS[seed % len(CHAPTERS)]
    if trace is not None:
        trace.append(f"{sim.now:6} --- {chapter.__name__}")
    chapter(story)


GOSSIP: Final = Simulation("gossip", scenario, MUTANTS)
