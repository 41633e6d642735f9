"""A seeded simulator for protocols without I/O: one seed, one run, always the same.

A `World` holds the protocol's processes and their durable storage; the `Simulator` owns time, the
network and the faults. A run has two phases: first faults are injected, then all faults stop, every
link heals, every process comes back, and the world must get done. Write the ordering rules into
`World.check`; it is called after every event.

    class PingPong(World):
        def boot(self, node): ...                  # volatile state from durable storage
        def deliver(self, src, dst, message): ...  # feed the core, perform its effects

    def scenario(seed, trace):
        world = PingPong()
        sim = Simulator(seed, Faults(loss=0.1, crash=0.05), world, ("a", "b"), trace=trace)
        sim.run(faults_ms=500, done=world.done)

    explore(scenario, runs=100_000)

Between two effects (persist, then send) call `Simulator.point`: the process may crash right there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from typing import Any

from novacron_testkit.experiment import current
from novacron_testkit.explorer import Scenario, explore
from novacron_testkit.faults import NO_FAULTS, Faults
from novacron_testkit.odds import NEVER, Chances, Odds
from novacron_testkit.world import Crash, NoProgress, World

# What a sender does with a message: to whom it really says what. It is asked for each message that
# the node sends, and returns pairs of receiver and message: none, one, or several.
Liar = Callable[[str, Any], Iterable[tuple[str, Any]]]


class Simulator:
    """Time, network, crashes. See the module.

    Attributes:
        now: Milliseconds since the beginning.
        rng: Chance for the world; delays and faults have sources of their own.
        events: How many events have happened.
        trace: What happened, if a list was given; for reading after a failure.
    """

    __slots__ = (
        "_at_events", "_at_points", "_at_sends", "_calm_events", "_calm_points", "_calm_sends",
        "_count", "_cuts", "_delay", "_drift", "_experiment", "_faults", "_heap", "_last",
        "_liars", "_lives", "_odds", "_skew", "_stalled", "_up", "events", "nodes", "now", "rng",
        "seed", "trace", "world",
    )  # fmt: skip

    def __init__(
        self,
        seed: int,
        faults: Faults,
        world: World,
        nodes: Iterable[str],
        *,
        trace: list[str] | None = None,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.world = world
        self.nodes: Sequence[str] = tuple(nodes)
        self.now = 0
        self.events = 0
        self.trace = trace
        self._faults = faults
        self._count = 0
        # (time, count, node or "", its life, function, arguments); count makes the order total.
        self._heap: list[tuple[int, int, str, int, Callable[..., None], tuple[Any, ...]]] = []
        self._lives = dict.fromkeys(self.nodes, 0)
        self._up = dict.fromkeys(self.nodes, True)
        self._last: dict[tuple[str, str], int] = {}
        self._cuts: dict[tuple[str, str], int] = {}
        self._stalled: dict[str, int] = {}
        self._liars: dict[str, Liar] = {}
        self._experiment = current()
        if self._experiment is not None:
            self._experiment.watch(self)
        self._delay = random.Random(~seed).random
        self._odds: dict[str, Odds] = {}
        self._at_sends = self._chances(
            cut=faults.cut,
            cut_one_way=faults.cut_one_way,
            partition=faults.partition,
            partition_one_way=faults.partition_one_way,
            loss=faults.loss,
            duplicate=faults.duplicate,
            reorder=faults.reorder,
        )
        self._at_events = self._chances(crash=faults.crash, stall=faults.stall, jump=faults.jump)
        self._at_points = self._chances(crash_between=faults.crash)
        self._calm_sends = self._at_sends.calm
        self._calm_events = self._at_events.calm
        self._calm_points = self._at_points.calm
        skew, drift = faults.skew_ms, faults.drift
        self._skew = {n: self.rng.randint(-skew, skew) for n in self.nodes} if skew else {}
        self._drift = {n: self.rng.uniform(-drift, drift) for n in self.nodes} if drift else {}
        for kind, effect in (("skew", self._skew), ("drift", self._drift)):
            if effect and not self.strikes(kind, 1.0):
                effect.clear()
        world.sim = self

    # What the world calls.

    def at(self, delay_ms: int, call: Callable[..., None], *args: Any, node: str = "") -> None:
        """Call later. With ``node``, it is that process's timer and dies with it."""
        self._count = count = self._count + 1
        life = self._lives[node] if node else 0
        heappush(self._heap, (self.now + delay_ms, count, node, life, call, args))

    def send(self, src: str, dst: str, message: Any) -> None:
        """Put a message on the network: it arrives once, late, twice or never."""
        if self._liars and src in self._liars:
            for receiver, said in self._liars[src](dst, message):
                self._transmit(src, receiver, said)
        else:
            self._transmit(src, dst, message)

    def _transmit(self, src: str, dst: str, message: Any) -> None:
        if self._calm_sends:
            self._calm_sends -= 1
            if (src, dst) not in self._cuts:
                self._post(src, dst, message, 0)
            elif self.trace is not None:
                self.trace.append(f"{self.now:6} lost {src}->{dst} {message!r}")
            return
        struck = self._at_sends.struck()
        self._calm_sends = self._at_sends.calm
        self._sever_by_chance(src, dst, struck)
        if (src, dst) in self._cuts or "loss" in struck:
            if self.trace is not None:
                self.trace.append(f"{self.now:6} lost {src}->{dst} {message!r}")
            return
        self._post(src, dst, message, int(struck.get("reorder", 0.0) * self._faults.reorder_ms))
        if "duplicate" in struck:
            self._post(src, dst, message, 0)

    def point(self, node: str) -> None:
        """A place between two effects where a process may crash. Raises Crash."""
        if self._calm_points:
            self._calm_points -= 1
            return
        struck = self._at_points.struck()
        self._calm_points = self._at_points.calm
        if struck:
            raise Crash(node)

    def strikes(self, kind: str, probability: float) -> bool:
        """Whether a fault of the world's own happens now; never when the faults are over.

        Args:
            kind: What it is called where single faults are named.
            probability: How likely it is each time it is asked for.
        """
        return self._strikes(kind, probability) is not None

    def _strikes(self, kind: str, probability: float) -> float | None:
        if self._faults is NO_FAULTS or probability <= 0:
            return None
        odds = self._odds.get(kind)
        if odds is None:
            odds = self._odds[kind] = Odds(self.seed, kind, probability, self._experiment)
        odds.change(probability)
        odds.left -= 1
        return None if odds.left else odds.strike()

    def disk_fails(self) -> bool:
        """Whether this write to durable storage fails (raise OSError then)."""
        return self.strikes("disk", self._faults.disk)

    def disk_ms(self) -> int:
        """How long this write to durable storage takes: what follows it happens so much later."""
        faults = self._faults
        share = self._strikes("slow", faults.slow)
        return 0 if share is None else int(share * faults.slow_ms)

    def disk_corrupt(self) -> bool:
        """Whether a sector of a disk that is opened now is not what was written."""
        return self.strikes("corrupt", self._faults.corrupt)

    def clock(self, node: str) -> int:
        """The time as that process believes it to be: it may jump, in either direction."""
        believed = self.steady(node) if self._drift else self.now
        return believed + self._skew.get(node, 0) if self._skew else believed

    def steady(self, node: str) -> int:
        """The process's monotonic clock: it may run fast or slow, and never jumps."""
        return int(self.now * (1 + self._drift.get(node, 0.0))) if self._drift else self.now

    def until(self, node: str, steady_ms: int) -> int:
        """How many milliseconds (for `at`) until that process's `steady` clock shows this."""
        if not self._drift:
            return max(0, steady_ms - self.now)
        rate = 1 + self._drift.get(node, 0.0)
        delay = max(0, int(steady_ms / rate) - self.now)
        while int((self.now + delay) * rate) < steady_ms:
            delay += 1
        return delay

    @property
    def quiet_now(self) -> bool:
        """Whether there are no faults any more."""
        return self._faults is NO_FAULTS

    def is_up(self, node: str) -> bool:
        return self._up[node]

    def is_cut(self, src: str, dst: str) -> bool:
        return (src, dst) in self._cuts

    # Faults, also by hand.

    def crash(self, node: str, restart_ms: int | None = None) -> None:
        """End a process; it comes back after ``restart_ms``, or when chance or quiet says so."""
        if not self._up[node]:
            return
        self._up[node] = False
        self._lives[node] += 1
        self._stalled.pop(node, None)
        if self.trace is not None:
            self.trace.append(f"{self.now:6} crash {node}")
        self.world.crashed(node)
        away = (
            int(self.rng.random() * self._faults.restart_ms) if restart_ms is None else restart_ms
        )
        self.at(away, self._restart, node)

    def cut(self, a: str, b: str, *, one_way: bool = False, for_ms: int | None = None) -> None:
        """Cut a link; what is under way still arrives."""
        length = 1 + int(self.rng.random() * self._faults.cut_ms) if for_ms is None else for_ms
        ways = ((a, b),) if one_way else ((a, b), (b, a))
        if self.trace is not None:
            self.trace.append(f"{self.now:6} cut {a}{'->' if one_way else '<->'}{b} for {length}")
        self._sever(ways, length)

    def partition(
        self, group: Iterable[str], *, one_way: bool = False, for_ms: int | None = None
    ) -> None:
        """Let a group of nodes and the others not reach each other.

        Args:
            one_way: The group reaches nobody outside; what the others say still reaches it.
            for_ms: How long; None for up to what the faults say.
        """
        inside = set(group)
        length = (
            1 + int(self.rng.random() * self._faults.partition_ms) if for_ms is None else for_ms
        )
        ways = [(a, b) for a in self.nodes for b in self.nodes if a in inside and b not in inside]
        if not one_way:
            ways += [(b, a) for a, b in ways]
        if self.trace is not None:
            arrow = "->" if one_way else "<->"
            rest = [node for node in self.nodes if node not in inside]
            self.trace.append(
                f"{self.now:6} partition {' '.join(sorted(inside))} {arrow} {' '.join(rest)} "
                f"for {length}"
            )
        self._sever(tuple(ways), length)

    def stall(self, node: str, for_ms: int | None = None) -> None:
        """Let a process stand still: what comes to it, its timers too, waits until it goes on."""
        length = 1 + int(self.rng.random() * self._faults.stall_ms) if for_ms is None else for_ms
        self._stalled[node] = max(self.now + length, self._stalled.get(node, 0))
        if self.trace is not None:
            self.trace.append(f"{self.now:6} stall {node} for {length}")

    def jump(self, node: str, by_ms: int) -> None:
        """Set a process's `clock` forward or back."""
        self._skew[node] = self._skew.get(node, 0) + by_ms
        if self.trace is not None:
            self.trace.append(f"{self.now:6} clock of {node} jumps by {by_ms}")

    def lie(self, node: str, liar: Liar | None) -> None:
        """From now on the liar decides what the node's messages are; None makes it honest."""
        if liar is None:
            self._liars.pop(node, None)
        else:
            self._liars[node] = liar

    # Who takes part.

    def join(self, node: str) -> None:
        """A node that was not there comes, and begins."""
        if node in self._lives:
            raise ValueError(f"{node!r} takes part already, or has left: give it another name")
        self.nodes = (*self.nodes, node)
        self._lives[node], self._up[node] = 0, True
        self._guard(self.world.boot, node)

    def leave(self, node: str) -> None:
        """A node ends for good."""
        self.nodes = tuple(other for other in self.nodes if other != node)
        if self._up[node]:
            self._up[node] = False
            self._lives[node] += 1
            self._stalled.pop(node, None)
            if self.trace is not None:
                self.trace.append(f"{self.now:6} {node} leaves")
            self.world.crashed(node)

    def quiet(self) -> None:
        """No more faults: links heal and processes come back."""
        self._faults = NO_FAULTS
        self._calm_sends = self._calm_events = self._calm_points = NEVER
        if self.trace is not None:
            self.trace.append(f"{self.now:6} quiet")
        self._skew = {}
        self._stalled.clear()
        healed = tuple(self._cuts)
        self._cuts.clear()
        for a, b in healed:
            self.at(0, self.world.link, a, b, True)
        for node in self.nodes:
            if not self._up[node]:
                self._restart(node)

    def _sever(self, ways: tuple[tuple[str, str], ...], length: int) -> None:
        until = self.now + length
        for way in ways:
            self._cuts[way] = max(until, self._cuts.get(way, 0))
        self.at(length, self._heal, ways)
        self._tell(ways, False)

    def _tell(self, ways: Iterable[tuple[str, str]], up: bool) -> None:
        """The world hears of a link once, whether one or both of its ways are concerned."""
        for a, b in {frozenset(way): way for way in reversed(tuple(ways))}.values():
            self.at(0, self.world.link, a, b, up)

    def _sever_by_chance(self, src: str, dst: str, struck: dict[str, float]) -> None:
        faults = self._faults
        for kind, share in struck.items():
            one_way = kind.endswith("_one_way")
            if kind in ("cut", "cut_one_way"):
                self.cut(src, dst, one_way=one_way, for_ms=1 + int(share * faults.cut_ms))
            elif kind in ("partition", "partition_one_way"):
                # Which nodes are on whose side is chosen by the same share.
                sides = random.Random(share).random
                group = [node for node in self.nodes if node == src or sides() < 0.5]
                self.partition(group, one_way=one_way, for_ms=1 + int(share * faults.partition_ms))

    def _chances(self, **kinds: float) -> Chances:
        return Chances(self.seed, kinds, self._experiment)

    # Running.

    def boot(self) -> None:
        """Begin all processes, in the order given."""
        for node in self.nodes:
            self._guard(self.world.boot, node)
        self.world.check()

    def run(
        self,
        *,
        faults_ms: int,
        done: Callable[[], bool],
        quiet_events: int = 2_000,
        quiet_ms: int | None = None,
    ) -> Simulator:
        """Boot, run with faults for that long, stop the faults and go on until done.

        Raises:
            NoProgress: Not done after ``quiet_events`` more events or ``quiet_ms`` more
                milliseconds, or nothing is left to happen.
        """
        if self._experiment is not None:
            faults_ms = self._experiment.limit_faults(faults_ms)
        self.boot()
        # The state may be done early and be undone by a crash: the faulty phase runs to its end.
        self.advance(faults_ms)
        self.quiet()
        self.world.check()
        limit, last = self.events + quiet_events, self.now
        while not done():
            if quiet_ms is not None and self.now > last + quiet_ms:
                raise NoProgress(f"not done after {quiet_ms} ms without faults")
            if self.events >= limit:
                raise NoProgress(f"not done after {quiet_events} events without faults")
            if not self.step():
                raise NoProgress("not done and nothing is left to happen")
        return self

    def advance(self, ms: int) -> None:
        """Everything that happens in the next milliseconds."""
        end = self.now + ms
        self._happen(end, None)
        self.now = end

    def step(self) -> bool:
        """The next event; False if there is none."""
        return self._happen(None, 1)

    def _happen(self, end: int | None, events: int | None) -> bool:
        """The events that are due until then, or so many; False if none was left to happen."""
        # Simulations spend their time here: what is looked up once per call is not once per event.
        heap, lives, stalled = self._heap, self._lives, self._stalled
        check = self.world.check
        while heap and (end is None or heap[0][0] <= end):
            # What is due may be for a process that is gone: then the next one that is for somebody
            # happens in its place.
            while heap:
                self.now, _, node, life, call, args = heappop(heap)
                if node and lives[node] != life:
                    continue
                if stalled and self._waits(node, life, call, args):
                    continue
                break
            else:
                return False
            self.events += 1
            try:
                if node:
                    if self._calm_events:
                        self._calm_events -= 1
                    else:
                        self._strike(node)
                call(*args)
            except Crash as crash_here:
                self.crash(crash_here.node)
            check()
            if events == 1:
                return True
        return False

    def _strike(self, node: str) -> None:
        """What befalls a process at an event of its own."""
        struck = self._at_events.struck()
        self._calm_events = self._at_events.calm
        if "crash" in struck:
            raise Crash(node)
        faults = self._faults
        if "stall" in struck:
            self.stall(node, 1 + int(struck["stall"] * faults.stall_ms))
        if "jump" in struck:
            self.jump(node, int((2 * struck["jump"] - 1) * faults.jump_ms))

    def _waits(
        self, node: str, life: int, call: Callable[..., None], args: tuple[Any, ...]
    ) -> bool:
        """Put an event off until the process that it is for goes on."""
        who = node or (args[1] if call == self._arrive else "")
        until = self._stalled.get(who)
        if until is None:
            return False
        if until <= self.now:
            del self._stalled[who]
            return False
        self._count = count = self._count + 1
        heappush(self._heap, (until, count, node, life, call, args))
        return True

    def _post(self, src: str, dst: str, message: Any, late_ms: int) -> None:
        least, most = self._faults.delay_ms
        arrival = self.now + least + int(self._delay() * (most - least + 1))
        if late_ms:
            arrival += late_ms
        else:
            way = (src, dst)
            last = self._last.get(way, 0)
            if last > arrival:
                arrival = last
            self._last[way] = arrival
        self._count = count = self._count + 1
        # Not the process's own event (no life): a message may reach its next life.
        heappush(self._heap, (arrival, count, "", 0, self._arrive, (src, dst, message)))

    def _arrive(self, src: str, dst: str, message: Any) -> None:
        up = self._up[dst]
        if self.trace is not None:
            self.trace.append(f"{self.now:6} {'' if up else 'lost '}{src}->{dst} {message!r}")
        if up:
            self.point(dst)
            self.world.deliver(src, dst, message)

    def _restart(self, node: str) -> None:
        if self._up[node] or node not in self.nodes:
            return
        self._up[node] = True
        if self.trace is not None:
            self.trace.append(f"{self.now:6} boot {node}")
        self._guard(self.world.boot, node)

    def _guard(self, call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except Crash as crash_here:
            self.crash(crash_here.node)

    def _heal(self, ways: tuple[tuple[str, str], ...]) -> None:
        healed = [way for way in ways if self._cuts.get(way, self.now + 1) <= self.now]
        for way in healed:
            del self._cuts[way]
        if healed:
            if self.trace is not None:
                self.trace.append(f"{self.now:6} healed {healed}")
            self._tell(healed, True)


__all__ = [
    "NO_FAULTS",
    "Crash",
    "Faults",
    "Liar",
    "NoProgress",
    "Scenario",
    "Simulator",
    "World",
    "explore",
]
