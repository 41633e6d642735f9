"""A simulated site that is evacuated: links that change, moves that fail, targets that vanish.

One seed decides everything. The world moves bytes as fluids and tells what happened; whoever drives
it (the evacuation, or one of the customs it is compared with) only begins and stops moves, and sees
of the truth what a node would see: forecasts, and how far each move is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from attrs import define, evolve, field, frozen

from novacron_placement_itp._bound import lower_bound_of_changing
from novacron_placement_itp._evacuation import (
    Begin,
    Cancel,
    Ended,
    Evacuation,
    Event,
    Gone,
    MakePlan,
    Planned,
    Progress,
    Rules,
    Save,
    Stop,
    Survey,
    Tick,
)
from novacron_placement_itp._fluid import Flow, Stage, advance, shares
from novacron_placement_itp._model import Bound, Link, Need, Problem, Target
from novacron_placement_itp._planner import Steady, make_plan, ways

STEP_S: Final = 1.0
SURVEY_S: Final = 5.0
RATE_STEP_S: Final = 5.0
# A copy that makes no headway for so long is given up by its node.
HEADWAY_S: Final = 60.0
TIME_MAX_S: Final = 40_000.0


@frozen(kw_only=True)
class Faults:
    """What goes wrong.

    Attributes:
        fail: Chance that a move fails, somewhere on its way.
        vanish: When each target stops to answer, and when it does again (infinite: never).
        stop: When a machine is stopped by its owner.
        restart: When the node that is evacuated crashes; it is back at once.
        cancel: When the operator cancels, and whether moves under way are cancelled too.
    """

    fail: float = 0.0
    vanish: Mapping[str, tuple[float, float]] = field(factory=dict)
    stop: Mapping[str, float] = field(factory=dict)
    restart: Sequence[float] = ()
    cancel: tuple[float, bool] | None = None


@frozen(kw_only=True)
class Instance:
    """What is to be evacuated, as the planner expects it and as it is.

    Attributes:
        expected: What a node would know beforehand.
        wire: The bytes of each machine in truth; ``dirty``: that it writes; ``prepare``: seconds.
        wobble: The spread of a link's rate around its mean, as a part of it.
        faults: What goes wrong.
    """

    seed: int
    expected: Problem
    wire: Mapping[str, float]
    dirty: Mapping[str, float]
    prepare: Mapping[str, float]
    wobble: float = 0.0
    faults: Faults = Faults()


@define(kw_only=True)
class Outcome:
    """What came of it.

    Attributes:
        seconds: Until the last machine that moves runs at its target.
        moved: Where each machine is.
        stayed: Why each other one stayed.
        wire_bytes: Sent altogether.
        attempts: Moves begun.
        plans: That were followed.
    """

    seconds: float
    moved: dict[str, str]
    stayed: dict[str, str]
    wire_bytes: float
    attempts: int
    plans: int = 0


@define(eq=False)
class World:
    """The truth. `step` lets time pass; `events` has what happened."""

    instance: Instance
    strict: bool = True
    now_s: float = field(default=0.0, init=False)
    flows: list[Flow] = field(factory=list, init=False)
    moved: dict[str, str] = field(factory=dict, init=False)
    gone: dict[str, str] = field(factory=dict, init=False)
    events: list[Event] = field(factory=list, init=False)
    wire_bytes: float = field(default=0.0, init=False)
    attempts: int = field(default=0, init=False)
    last_end_s: float = field(default=0.0, init=False)
    _rates: list[list[float]] = field(factory=list, init=False)
    _fails_at: dict[str, float] = field(factory=dict, init=False)
    _headway: dict[str, tuple[float, float]] = field(factory=dict, init=False)
    _rng: random.Random = field(init=False)
    _way: dict[str, list[int]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._rng = random.Random(f"world {self.instance.seed}")
        problem = self.instance.expected
        self._way = ways(problem.links, [target.node for target in problem.targets])
        self._rates = [[] for _ in problem.links]

    # The truth about links.

    def rate(self, link: int, at_s: float) -> float:
        """Of a link at a moment: its mean, and a wobble that lasts for some time."""
        line, mean = self._rates[link], self.instance.expected.links[link].rate
        rng_of = random.Random
        while len(line) <= at_s / RATE_STEP_S:
            rng = rng_of(f"{self.instance.seed} {link} {len(line)}")
            before = line[-1] / mean - 1 if line else 0.0
            wobble = self.instance.wobble
            after = 0.8 * before + 0.6 * wobble * rng.gauss(0, 1)
            line.append(mean * (1 + min(max(after, -2.5 * wobble), 2.5 * wobble)))
        return line[int(at_s / RATE_STEP_S)]

    def carried(self, name: str, begin_s: float, end_s: float) -> float:
        """The bytes that a link carries from one moment to another."""
        link = [one.name for one in self.instance.expected.links].index(name)
        total, at = 0.0, begin_s
        while at < end_s:
            until = min((int(at / RATE_STEP_S + 1e-9) + 1) * RATE_STEP_S, end_s)
            total += self.rate(link, at) * (until - at)
            at = until
        return total

    def up(self, target: str) -> bool:
        gone_s, back_s = self.instance.faults.vanish.get(target, (math.inf, math.inf))
        return not gone_s <= self.now_s < back_s

    # What can be done in it.

    def begin(self, machine: str, target: str) -> None:
        """Begin a move; refused at once where it cannot be."""
        instance = self.instance
        assert machine not in self.moved, f"{machine} has moved already"
        assert all(flow.machine != machine for flow in self.flows), f"{machine} moves already"
        self.attempts += 1
        need = self.need(machine)
        if machine in self.gone or not self.up(target) or need.memory_bytes > self.free(target):
            reason = "no room" if self.up(target) and machine not in self.gone else "no answer"
            self.events.append(Ended(machine, moved=False, reason=reason))
            return
        dirty = min(instance.dirty[machine], 0.95 * need.rate_max)
        self.flows.append(
            Flow(
                machine=machine,
                target=target,
                wire_bytes=instance.wire[machine],
                remaining_bytes=instance.wire[machine],
                dirty_bytes_per_s=dirty,
                rate_max=need.rate_max,
                prepare_s=instance.prepare[machine],
                finish_s=instance.expected.finish_s,
            )
        )
        self._headway[machine] = (self.now_s, math.inf)
        if self._rng.random() < instance.faults.fail:
            self._fails_at[machine] = instance.wire[machine] * self._rng.random()

    def need(self, machine: str) -> Need:
        return next(need for need in self.instance.expected.needs if need.machine == machine)

    def stop(self, machine: str) -> None:
        """Cancel a move, if it still can be."""
        for flow in list(self.flows):
            if flow.machine == machine and flow.stage < Stage.FINISH:
                self._end(flow, moved=False, reason="cancelled")

    def free(self, target: str) -> int:
        """What a target says of its memory: what arrives takes it bit by bit."""
        node = next(one for one in self.instance.expected.targets if one.node == target)
        used = sum(self.need(m).memory_bytes for m, where in self.moved.items() if where == target)
        used += sum(
            int(self.need(flow.machine).memory_bytes * flow.sent_bytes / max(flow.wire_bytes, 1.0))
            for flow in self.flows
            if flow.target == target
        )
        return node.free_memory_bytes - used

    def crash(self) -> None:
        """The node that is evacuated ends and is back: copies begin anew, hand-overs go on."""
        for flow in list(self.flows):
            if flow.stage < Stage.FINISH:
                self._end(flow, moved=False, reason="the node was restarted")

    def survey(self) -> Survey:
        """What the node that is evacuated can know of links and targets."""
        expected = self.instance.expected
        return Survey(
            targets=[
                evolve(one, free_memory_bytes=max(self.free(one.node), 0))
                for one in expected.targets
                if self.up(one.node)
            ],
            links=[
                evolve(link, rate=self._forecast(number), low=0.0, high=0.0)
                for number, link in enumerate(expected.links)
            ],
        )

    def _forecast(self, link: int) -> float:
        """From the last half minute and from what is known of old."""
        seen = [self.rate(link, max(self.now_s - back, 0.0)) for back in (0.0, 10.0, 20.0, 30.0)]
        return 0.5 * sum(seen) / len(seen) + 0.5 * self.instance.expected.links[link].rate

    # Time.

    def step(self, seconds: float = STEP_S) -> None:
        """Let so much time pass, or less: up to the next change of the links."""
        until = self.now_s + seconds
        for machine, at in self.instance.faults.stop.items():
            if at <= self.now_s and machine not in self.moved and machine not in self.gone:
                self._stop_machine(machine)
        while self.now_s < until - 1e-9:
            rates = [self.rate(link, self.now_s) for link in range(len(self._rates))]
            live = [flow for flow in self.flows if self.up(flow.target)]
            given = shares(live, self._way, rates, strict=self.strict)
            self._check_capacity(live, given, rates)
            edge = (int(self.now_s / RATE_STEP_S + 1e-9) + 1) * RATE_STEP_S
            before = sum(flow.sent_bytes for flow in live)
            passed = advance(live, given, min(until, edge) - self.now_s)
            self.wire_bytes += sum(flow.sent_bytes for flow in live) - before
            self.now_s += max(passed, 1e-9)
            for flow in live:
                self._look_at(flow)

    def _look_at(self, flow: Flow) -> None:
        if flow.stage is Stage.DONE:
            self._end(flow, moved=True, reason="")
            return
        fails_at = self._fails_at.get(flow.machine)
        if fails_at is not None and flow.stage is Stage.COPY and flow.sent_bytes >= fails_at:
            self._end(flow, moved=False, reason="the link broke for good")
            return
        since, least = self._headway[flow.machine]
        if flow.stage is not Stage.COPY or flow.remaining_bytes < least * 0.999:
            self._headway[flow.machine] = (self.now_s, flow.remaining_bytes)
        elif self.now_s - since > HEADWAY_S and not self.strict:
            self._end(flow, moved=False, reason="it writes faster than it leaves")

    def _check_capacity(
        self, flows: Sequence[Flow], given: Sequence[float], rates: Sequence[float]
    ) -> None:
        for link, rate in enumerate(rates):
            used = sum(
                share
                for flow, share in zip(flows, given, strict=True)
                if link in self._way[flow.target]
            )
            assert used <= rate * (1 + 1e-9), "more was sent than the link carries"

    def _stop_machine(self, machine: str) -> None:
        for flow in list(self.flows):
            if flow.machine == machine:
                if flow.stage is Stage.FINISH:
                    return  # it is being handed over: it can be stopped where it will be
                self._end(flow, moved=False, reason="the machine was stopped")
        self.gone[machine] = "it was stopped"
        self.events.append(Gone(machine, "it was stopped"))

    def _end(self, flow: Flow, *, moved: bool, reason: str) -> None:
        self.flows.remove(flow)
        self._fails_at.pop(flow.machine, None)
        if moved:
            self.moved[flow.machine] = flow.target
            self.last_end_s = self.now_s
            self._check_memory(flow.target)
        self.events.append(Ended(flow.machine, moved=moved, reason=reason))

    def _check_memory(self, target: str) -> None:
        assert self.free(target) >= 0, f"{target} was given more than its memory"

    def take_events(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def outcome(self, stayed: Mapping[str, str] | None = None, plans: int = 0) -> Outcome:
        return Outcome(
            seconds=self.last_end_s,
            moved=dict(self.moved),
            stayed=dict(stayed or {}),
            wire_bytes=self.wire_bytes,
            attempts=self.attempts,
            plans=plans,
        )


# Who drives it.


def evacuate(instance: Instance, rules: Rules | None = None) -> Outcome:
    """By the evacuation of this package. Asserts its laws on the way."""
    expected = instance.expected
    rules = rules or Rules(prepare_s=expected.prepare_s, finish_s=expected.finish_s)
    world = World(instance, strict=rules.strict)
    core = Evacuation.of(expected.needs, rules, together=expected.together, apart=expected.apart)
    saved = core.to_json()
    steady, surveyed_s, restarts = Steady(), -math.inf, sorted(instance.faults.restart)
    cancelled = False

    def feed(event: Event) -> None:
        nonlocal saved
        queue = [event]
        while queue:
            for action in core.handle(queue.pop(0), world.now_s):
                match action:
                    case MakePlan(problem, present):
                        queue.append(Planned(*steady.choose(problem, present)))
                    case Begin(machine, target):
                        world.begin(machine, target)
                    case Stop(machine):
                        world.stop(machine)
                    case Save():
                        saved = core.to_json()

    while not core.finished:
        if world.now_s >= TIME_MAX_S:
            raise AssertionError(f"seed={instance.seed}: it does not end")
        if restarts and world.now_s >= restarts[0]:
            restarts.pop(0)
            world.crash()
            world.take_events()
            core, steady, surveyed_s = Evacuation.from_json(saved), Steady(), -math.inf
            for event in found_after_restart(core, world.moved, world.gone, world.flows):
                feed(event)
        if world.now_s >= surveyed_s + SURVEY_S:
            surveyed_s = world.now_s
            feed(world.survey())
        cancel = instance.faults.cancel
        if cancel and world.now_s >= cancel[0] and not cancelled:
            cancelled = True
            feed(Cancel(hard=cancel[1]))
        for flow in list(world.flows):
            feed(Progress(flow.machine, flow.stage, flow.remaining_bytes))
        feed(Tick())
        world.step()
        for event in world.take_events():
            feed(event)
        # What begins at once is refused at once, too.
        while late := world.take_events():
            for event in late:
                feed(event)
    _check_laws(instance, core, world, rules)
    stayed = {name: case.reason for name, case in core.cases.items() if name not in world.moved}
    return world.outcome(stayed, core.plans)


def found_after_restart(
    core: Evacuation,
    moved: Mapping[str, str],
    gone: Mapping[str, str],
    flows: Sequence[Flow],
) -> list[Event]:
    """What a node that is back tells the evacuation that it has read from its disk."""
    events: list[Event] = []
    going = {flow.machine for flow in flows}
    for name, case in core.cases.items():
        if name in moved:
            events.append(Gone(name, "it moved before the restart", moved[name]))
        elif name in gone:
            events.append(Gone(name, gone[name]))
        elif case.status == "moving" and name not in going:
            events.append(Ended(name, moved=False, reason="the node was restarted"))
    return events


def _check_laws(instance: Instance, core: Evacuation, world: World, rules: Rules) -> None:
    for name, case in core.cases.items():
        where = f"seed={instance.seed}: {name}"
        if case.status == "moved":
            assert world.moved.get(name) == case.target, f"{where} is not where it is said to be"
        else:
            assert name not in world.moved, f"{where} moved and is said to have stayed"
            assert case.reason, f"{where} stayed without a reason"
        assert sum(case.attempts.values()) <= rules.attempts_max, f"{where}: too many attempts"
    expected = instance.expected
    for group in expected.apart:
        places = [world.moved[name] for name in group if name in world.moved]
        assert len(set(places)) == len(places), f"seed={instance.seed}: {sorted(group)} met"
    for group in expected.together:
        places = [world.moved[name] for name in group if name in world.moved]
        assert len(set(places)) <= 1, f"seed={instance.seed}: {sorted(group)} were parted"


def one_by_one(instance: Instance) -> Outcome:
    """The custom of a loop in a script: each to the faster link where it still fits, then the
    next."""
    world = World(instance, strict=False)
    queue = list(instance.expected.needs)
    for need in queue:
        targets = [
            one.node
            for one in instance.expected.targets
            if need.memory_bytes <= world.free(one.node)
            and not instance.expected.objection(need, one)
        ]
        if targets:
            world.begin(need.machine, max(targets, key=instance.expected.rate_to))
            _run_out(world)
    return world.outcome()


def all_at_once(instance: Instance) -> Outcome:
    """All begin together, each to the target that the plan gives it, and share evenly; who is
    given up by its node is moved again alone at the end."""
    world = World(instance, strict=False)
    targets = make_plan(instance.expected).targets
    for machine, target in targets.items():
        world.begin(machine, target)
    for ended in _run_out(world):
        if not ended.moved:
            world.begin(ended.machine, targets[ended.machine])
            _run_out(world)
    return world.outcome()


def _run_out(world: World) -> list[Ended]:
    """Until nothing is under way."""
    ended: list[Ended] = []
    while world.flows:
        if world.now_s >= TIME_MAX_S:
            raise AssertionError(f"seed={world.instance.seed}: it does not end")
        world.step()
        ended += [event for event in world.take_events() if isinstance(event, Ended)]
    return ended


def bound_of_truth(instance: Instance) -> Bound:
    """What nobody can beat, whatever he knows: for the bytes, writes and rates of the truth."""
    world = World(instance)
    problem = instance.expected
    peak = 1 + 2.5 * instance.wobble
    needs = [
        evolve(
            need,
            wire_bytes=instance.wire[need.machine],
            dirty_bytes_per_s=instance.dirty[need.machine],
        )
        for need in problem.needs
    ]
    truth = evolve(
        problem,
        needs=needs,
        links=[evolve(link, rate=link.rate * peak) for link in problem.links],
        prepare_s=min(instance.prepare.values()),
    )
    return lower_bound_of_changing(truth, world.carried)


# Instances.


@frozen(kw_only=True)
class Setting:
    """What instances are drawn from.

    Attributes:
        machines: How many.
        wire_median_bytes, wire_spread: Of their expected bytes, log-normal.
        rate: Of the faster link, bytes per second; the slower one has from ``slower_least`` to
            ``slower_most`` of it.
        dirty_part: So many of the machines write, at up to ``dirty_most`` of the slower link.
        memory_spare: The targets' memory together, over what is needed.
        error: Of what is expected of a machine's bytes, log-normal.
        wobble: Of the links' rates.
    """

    machines: int = 40
    wire_median_bytes: float = 0.5e9
    wire_spread: float = 0.8
    rate: float = 125e6
    slower_least: float = 0.3
    slower_most: float = 0.8
    dirty_part: float = 0.5
    dirty_most: float = 0.3
    memory_spare: float = 1.5
    prepare_s: float = 3.0
    finish_s: float = 1.0
    error: float = 0.15
    wobble: float = 0.1


def draw(seed: int, setting: Setting = Setting(), faults: Faults = Faults()) -> Instance:
    """An instance: two targets behind links of unequal rate."""
    rng = random.Random(f"instance {seed}")
    slow = setting.rate * rng.uniform(setting.slower_least, setting.slower_most)
    needs, wire, dirty, prepare = [], {}, {}, {}
    for number in range(setting.machines):
        name = f"vm{number:02d}"
        expected = setting.wire_median_bytes * rng.lognormvariate(0, setting.wire_spread)
        writes = rng.random() < setting.dirty_part
        rate = slow * setting.dirty_most * rng.random() if writes else 0.0
        memory = int(max(expected * rng.uniform(2.5, 6), 1 << 28))
        needs.append(
            Need(
                machine=name,
                driver="qemu",
                memory_bytes=memory,
                wire_bytes=expected,
                dirty_bytes_per_s=rate,
            )
        )
        wire[name] = expected * rng.lognormvariate(0, setting.error)
        dirty[name] = rate * rng.lognormvariate(0, setting.error)
        prepare[name] = setting.prepare_s * rng.uniform(0.8, 1.2)
    memory = int(sum(need.memory_bytes for need in needs) * setting.memory_spare / 2)
    targets = [Target(node=name, free_memory_bytes=memory, drivers=("qemu",)) for name in "bc"]
    links = [
        Link(name="link to b", targets=frozenset("b"), rate=setting.rate),
        Link(name="link to c", targets=frozenset("c"), rate=slow),
    ]
    problem = Problem(
        needs=needs,
        targets=targets,
        links=links,
        prepare_s=setting.prepare_s,
        finish_s=setting.finish_s,
    )
    return Instance(
        seed=seed,
        expected=problem,
        wire=wire,
        dirty=dirty,
        prepare=prepare,
        wobble=setting.wobble,
        faults=faults,
    )


Way = Callable[[Instance], Outcome]
WAYS: Final[Mapping[str, Way]] = {
    "one by one": one_by_one,
    "all at once": all_at_once,
    "evacuate": evacuate,
}
