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
import subprocess
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from typing import Any

from attrs import frozen


@frozen(kw_only=True)
class Faults:
    """How likely each fault is, as a probability for each time it could happen.

    Attributes:
        loss: A message is lost.
        duplicate: A message arrives twice.
        reorder: A message is overtaken by later ones; without it a link keeps its order.
        cut: A message finds its link cut, in both directions.
        cut_one_way: The same, in its own direction only.
        crash: A process crashes, at each event it takes and at each `Simulator.point` it passes.
        disk: `Simulator.disk_fails` says yes.
        delay_ms: The least and the most that a message is under way.
        reorder_ms: The most that an overtaken message is late.
        cut_ms: The most that a cut lasts.
        restart_ms: The most that a crashed process is away.
        skew_ms: The most that a process's clock is ahead or behind.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    cut: float = 0.0
    cut_one_way: float = 0.0
    crash: float = 0.0
    disk: float = 0.0
    delay_ms: tuple[int, int] = (1, 20)
    reorder_ms: int = 200
    cut_ms: int = 300
    restart_ms: int = 300
    skew_ms: int = 0


NO_FAULTS = Faults()


class Crash(Exception):
    """A process ends here. Raised through the world's code into the simulator; do not catch it."""

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.node = node


class NoProgress(AssertionError):
    """The faults were over and the world did not get done."""


class World:
    """What is simulated. Override `boot` and `deliver`, and the others if you need them."""

    sim: Simulator

    def boot(self, node: str) -> None:
        """A process begins, for the first time or after a crash: only durable things are left."""

    def deliver(self, src: str, dst: str, message: Any) -> None:
        """A message arrives at a process that is up."""

    def link(self, a: str, b: str, up: bool) -> None:
        """A link was cut or has healed: an event of its own, so never in the midst of a send.

        Real transports tell this late or never; `Simulator.is_up` says whose process still hears.
        """

    def crashed(self, node: str) -> None:
        """A process has ended: drop its volatile state, and whatever dies with it."""

    def check(self) -> None:
        """Assert what must hold after every event."""


class Simulator:
    """Time, network, crashes. See the module.

    Attributes:
        now: Milliseconds since the beginning.
        rng: The run's only source of chance; the world may draw from it too.
        events: How many events have happened.
        trace: What happened, if a list was given; for reading after a failure.
    """

    __slots__ = (
        "_count", "_cuts", "_faults", "_heap", "_last", "_lives", "_skew", "_up",
        "events", "nodes", "now", "rng", "seed", "trace", "world",
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
        skew = faults.skew_ms
        self._skew = {n: self.rng.randint(-skew, skew) for n in self.nodes} if skew else {}
        world.sim = self

    # What the world calls.

    def at(self, delay_ms: int, call: Callable[..., None], *args: Any, node: str = "") -> None:
        """Call later. With ``node``, it is that process's timer and dies with it."""
        self._count = count = self._count + 1
        life = self._lives[node] if node else 0
        heappush(self._heap, (self.now + delay_ms, count, node, life, call, args))

    def send(self, src: str, dst: str, message: Any) -> None:
        """Put a message on the network: it arrives once, late, twice or never."""
        faults = self._faults
        if faults is not NO_FAULTS:
            chance = self.rng.random
            if faults.cut and chance() < faults.cut:
                self.cut(src, dst)
            elif faults.cut_one_way and chance() < faults.cut_one_way:
                self.cut(src, dst, one_way=True)
            if (src, dst) in self._cuts or (faults.loss and chance() < faults.loss):
                if self.trace is not None:
                    self.trace.append(f"{self.now:6} lost {src}->{dst} {message!r}")
                return
            self._post(src, dst, message)
            if faults.duplicate and chance() < faults.duplicate:
                self._post(src, dst, message)
        elif (src, dst) not in self._cuts:
            self._post(src, dst, message)

    def point(self, node: str) -> None:
        """A place between two effects where a process may crash. Raises Crash."""
        crash = self._faults.crash
        if crash and self.rng.random() < crash:
            raise Crash(node)

    def disk_fails(self) -> bool:
        """Whether this write to durable storage fails (raise OSError then)."""
        disk = self._faults.disk
        return bool(disk) and self.rng.random() < disk

    def clock(self, node: str) -> int:
        """The time as that process believes it to be."""
        return self.now + self._skew.get(node, 0) if self._skew else self.now

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
        until = self.now + length
        ways = ((a, b),) if one_way else ((a, b), (b, a))
        if self.trace is not None:
            self.trace.append(f"{self.now:6} cut {a}{'->' if one_way else '<->'}{b} for {length}")
        for way in ways:
            self._cuts[way] = max(until, self._cuts.get(way, 0))
        self.at(length, self._heal, ways)
        self.at(0, self.world.link, a, b, False)

    def quiet(self) -> None:
        """No more faults: links heal and processes come back."""
        self._faults = NO_FAULTS
        if self.trace is not None:
            self.trace.append(f"{self.now:6} quiet")
        self._skew = {}
        healed = tuple(self._cuts)
        self._cuts.clear()
        for a, b in healed:
            self.at(0, self.world.link, a, b, True)
        for node in self.nodes:
            if not self._up[node]:
                self._restart(node)

    # Running.

    def boot(self) -> None:
        """Begin all processes, in the order given."""
        for node in self.nodes:
            self._guard(self.world.boot, node)
        self.world.check()

    def run(
        self, *, faults_ms: int, done: Callable[[], bool], quiet_events: int = 2_000
    ) -> Simulator:
        """Boot, run with faults for that long, stop the faults and go on until done.

        Raises:
            NoProgress: Not done after ``quiet_events`` more events, or nothing is left to happen.
        """
        self.boot()
        # The state may be done early and be undone by a crash: the faulty phase runs to its end.
        self.advance(faults_ms)
        self.quiet()
        self.world.check()
        limit = self.events + quiet_events
        while not done():
            if self.events >= limit:
                raise NoProgress(f"not done after {quiet_events} events without faults")
            if not self.step():
                raise NoProgress("not done and nothing is left to happen")
        return self

    def advance(self, ms: int) -> None:
        """Everything that happens in the next milliseconds."""
        heap, end, step = self._heap, self.now + ms, self.step
        while heap and heap[0][0] <= end:
            step()
        self.now = end

    def step(self) -> bool:
        """The next event; False if there is none."""
        heap = self._heap
        lives = self._lives
        while heap:
            self.now, _, node, life, call, args = heappop(heap)
            if node and lives[node] != life:
                continue
            self.events += 1
            try:
                if node:
                    crash = self._faults.crash
                    if crash and self.rng.random() < crash:
                        raise Crash(node)
                call(*args)
            except Crash as crash_here:
                self.crash(crash_here.node)
            self.world.check()
            return True
        return False

    def _post(self, src: str, dst: str, message: Any) -> None:
        faults = self._faults
        least, most = faults.delay_ms
        arrival = self.now + least + int(self.rng.random() * (most - least + 1))
        if faults.reorder and self.rng.random() < faults.reorder:
            arrival += int(self.rng.random() * faults.reorder_ms)
        else:
            way = (src, dst)
            arrival = max(arrival, self._last.get(way, 0))
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
        if self._up[node]:
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
            self.at(0, self.world.link, *healed[0], True)


Scenario = Callable[[int, "list[str] | None"], Any]


def explore(scenario: Scenario, runs: int, *, first_seed: int = 0, tail: int = 60) -> int:
    """Run a scenario with ``runs`` seeds; the first failure is run again with a trace and shown.

    Returns: how many runs there were.
    Raises:
        AssertionError: Begins with ``seed=… commit=…``; give that seed to the scenario to replay.
    """
    for seed in range(first_seed, first_seed + runs):
        try:
            scenario(seed, None)
        except Exception as error:  # whatever it is, it is reported with its seed
            raise AssertionError(_story(scenario, seed, error, tail)) from error
    return runs


def _story(scenario: Scenario, seed: int, error: Exception, tail: int) -> str:
    trace: list[str] = []
    again = "the replay did NOT fail: the scenario depends on more than its seed"
    try:
        scenario(seed, trace)
    except Exception as second:  # the same failure, this time with its trace
        again = "" if repr(second) == repr(error) else f"the replay failed otherwise: {second!r}"
    lines = [f"seed={seed} commit={_commit()} {type(error).__name__}: {error}"]
    if again:
        lines.append(again)
    if len(trace) > tail:
        lines.append(f"... {len(trace) - tail} lines before")
    return "\n".join(lines + trace[-tail:])


def _commit() -> str:
    try:
        found = subprocess.run(
            ("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"
