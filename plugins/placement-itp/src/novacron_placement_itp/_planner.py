"""From a problem to a plan: targets by list scheduling and by an integer program, the order and the
moves at once by prediction; the plan that ends first is kept.

Pure and deterministic; with tens of machines it takes tenths of a second, so call it in a thread.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import define, evolve, field

from novacron_placement_itp._bound import lower_bound
from novacron_placement_itp._fluid import Flow, Stage, run
from novacron_placement_itp._model import Bound, Link, Need, Plan, Problem, Stint
from novacron_placement_itp._program import Program

LANES: Final = 3
LANES_TRIED: Final = (1, 2, 3, 4, 6)
# Plans whose ends differ by less than this part are equal; the one with fewer bytes is better.
_ALIKE: Final = 0.002

Targets = Mapping[str, str]
Times = dict[str, dict[Stage, float]]


def make_plan(problem: Problem) -> Plan:
    """The best plan that was found. Machines that can go nowhere are stranded, with the reason."""
    greedy = _by_list(problem)
    candidates = [greedy]
    if len(greedy) > 1 or len(greedy) < len(problem.needs):
        found = Program(problem, whole=True).solve(hint=greedy).targets()
        if found and found != greedy:
            candidates.append(found)
    predicted = [predict(problem, targets, _lanes(problem, targets)) for targets in candidates]
    best, *others = predicted
    for other in others:
        best = other if other.better_than(best) else best
    return _plan(problem, _with_best_lanes(problem, best))


# Targets.


def _by_list(problem: Problem) -> dict[str, str]:
    """List scheduling: the largest first, each to where it would end first."""
    needs = {need.machine: need for need in problem.needs}
    begun = {one.machine: one.target for one in problem.under_way}
    room = {target.node: target.free_memory_bytes for target in problem.targets}
    load = dict.fromkeys((link.name for link in problem.links), 0.0)
    for one in problem.under_way:
        for link in problem.links:
            if one.target in link.targets:
                load[link.name] += one.remaining_bytes / link.rate
    units = _units(problem, {name for name in needs if name not in begun})
    units.sort(key=lambda unit: (-max(n.priority for n in unit), -_size(unit), unit[0].machine))
    chosen: dict[str, str] = {}
    for unit in units:
        ends = {}
        for target in problem.targets:
            where = {**begun, **chosen}
            if any(problem.objection(need, target) for need in unit):
                continue
            if sum(need.memory_bytes for need in unit) > room[target.node]:
                continue
            if _parted(problem, unit, target.node, where):
                continue
            after = _loaded(problem, load, unit, target.node)
            own = max(problem.copy_s(need, target.node) for need in unit)
            ends[target.node] = (max([own, *after.values()]), sum(after.values()), target.node)
        if not ends:
            continue
        target_name = min(ends, key=lambda name: ends[name])
        load = _loaded(problem, load, unit, target_name)
        for need in unit:
            chosen[need.machine] = target_name
            room[target_name] -= need.memory_bytes
    return chosen


def _units(problem: Problem, waiting: set[str]) -> list[list[Need]]:
    """Machines that go together, the others alone."""
    needs = {need.machine: need for need in problem.needs}
    units, taken = [], set[str]()
    for group in problem.together:
        members = sorted(group & waiting - taken)
        if members:
            units.append([needs[name] for name in members])
            taken.update(members)
    return units + [[needs[name]] for name in sorted(waiting - taken)]


def _size(unit: Sequence[Need]) -> float:
    return sum(need.wire_bytes for need in unit)


def _loaded(
    problem: Problem, load: Mapping[str, float], unit: Sequence[Need], target: str
) -> dict[str, float]:
    more = sum(problem.fewest_bytes(need, target) for need in unit)
    return {
        link.name: load[link.name] + (more / link.rate if target in link.targets else 0.0)
        for link in problem.links
    }


def _parted(problem: Problem, unit: Sequence[Need], target: str, where: Targets) -> bool:
    """Whether somebody in the unit may not be there, for who is there."""
    names = {need.machine for need in unit}
    there = {name for name, node in where.items() if node == target} | names
    elsewhere = {name for name, node in where.items() if node != target}
    return any(len(group & there) > 1 and group & names for group in problem.apart) or any(
        group & names and group & elsewhere for group in problem.together
    )


# Order, moves at once, prediction.


@define
class _Prediction:
    targets: Targets
    lanes: dict[str, int]
    times: Times
    sent: dict[str, float]
    ends: bool

    @property
    def makespan_s(self) -> float:
        return max((times[Stage.DONE] for times in self.times.values()), default=0.0)

    def better_than(self, other: _Prediction) -> bool:
        if (self.ends, len(self.times)) != (other.ends, len(other.times)):
            return (self.ends, len(self.times)) > (other.ends, len(other.times))
        if abs(self.makespan_s - other.makespan_s) > _ALIKE * other.makespan_s:
            return self.makespan_s < other.makespan_s
        return sum(self.sent.values()) < sum(other.sent.values()) * (1 - 1e-9)


def _lanes(problem: Problem, targets: Targets) -> dict[str, int]:
    """What is taken unless others are better: one that is copied, and two that are held ready, for
    preparing may take longer than it should."""
    lanes = LANES
    used = {*targets.values(), *(one.target for one in problem.under_way)}
    return dict.fromkeys(sorted(used), min(lanes, problem.moves_max or lanes))


def _with_best_lanes(problem: Problem, best: _Prediction) -> _Prediction:
    """Try how many moves at once are best: for all targets alike, then a little more or less for
    each."""
    most = problem.moves_max or LANES_TRIED[-1]
    for lanes in LANES_TRIED:
        if lanes <= most and lanes != LANES:
            prediction = predict(problem, best.targets, dict.fromkeys(best.lanes, lanes))
            best = prediction if prediction.better_than(best) else best
    for target in best.lanes if len(best.lanes) > 1 else ():
        for lanes in (best.lanes[target] - 1, best.lanes[target] + 1):
            if 1 <= lanes <= most:
                prediction = predict(problem, best.targets, best.lanes | {target: lanes})
                best = prediction if prediction.better_than(best) else best
    return best


def order(problem: Problem, targets: Targets) -> list[Need]:
    """Who is begun before whom: by priority, then the largest first, so that the small ones that
    come last can still be moved from a target that fell behind to one that is ahead."""
    waiting = [need for need in problem.needs if need.machine in targets]
    return sorted(waiting, key=lambda need: (-need.priority, -need.wire_bytes, need.machine))


def predict(
    problem: Problem, targets: Targets, lanes: Mapping[str, int], quantile: str = ""
) -> _Prediction:
    """What a plan would come to; ``quantile``: with the links at their ``high`` or ``low``."""
    needs = {need.machine: need for need in problem.needs}
    flows = []
    for one in problem.under_way:
        flow = _flow(problem, needs[one.machine], one.target, quantile)
        flow.remaining_bytes = one.remaining_bytes
        flow.prepare_s = one.prepare_s
        flows.append(flow)
    times: Times = {}
    queues: dict[str, deque[Need]] = {target: deque() for target in lanes}
    for need in order(problem, targets):
        queues[targets[need.machine]].append(need)

    def begin(now: float, active: Sequence[Flow]) -> list[Flow]:
        busy = Counter(flow.target for flow in active if flow.stage < Stage.FINISH)
        allowed = problem.moves_max - len(active) if problem.moves_max else len(problem.needs)
        fresh: list[Flow] = []
        for target, queue in queues.items():
            while queue and busy[target] < lanes[target] and len(fresh) < allowed:
                busy[target] += 1
                fresh.append(_flow(problem, queue.popleft(), target, quantile))
        return fresh

    def watch(now: float, flow: Flow, stage: Stage) -> None:
        at = times.setdefault(flow.machine, {})
        for earlier in (*Stage,)[: stage + 1]:
            at.setdefault(earlier, now)
        sent[flow.machine] = flow.sent_bytes

    sent: dict[str, float] = {}
    way = ways(problem.links, [target.node for target in problem.targets])
    rates = [link.at(quantile) for link in problem.links]
    ended = run(begin, way, rates, strict=problem.strict, under_way=flows, watch=watch)
    for at in times.values():
        at.setdefault(Stage.DONE, math.inf)
        at.setdefault(Stage.COPY, math.inf)
    return _Prediction(targets, dict(lanes), times, sent, ended)


def ways(links: Sequence[Link], targets: Sequence[str]) -> dict[str, list[int]]:
    """The numbers of the links on the way to each target."""
    return {
        target: [number for number, link in enumerate(links) if target in link.targets]
        for target in targets
    }


def _flow(problem: Problem, need: Need, target: str, quantile: str) -> Flow:
    return Flow(
        machine=need.machine,
        target=target,
        wire_bytes=need.wire_bytes,
        remaining_bytes=need.wire_bytes,
        # A guest may write faster than a bad day's link: it is then slowed down, or goes last.
        dirty_bytes_per_s=min(
            need.dirty_bytes_per_s, 0.9 * min(need.rate_max, problem.rate_to(target, quantile))
        ),
        rate_max=need.rate_max,
        prepare_s=problem.prepare_s,
        finish_s=problem.finish_s,
    )


# The plan.


def _plan(problem: Problem, best: _Prediction) -> Plan:
    bad = predict(problem, best.targets, best.lanes, "low").times
    good = predict(problem, best.targets, best.lanes, "high").times
    target_of = dict(best.targets) | {one.machine: one.target for one in problem.under_way}
    stints = []
    before: Counter[str] = Counter()
    for machine, at in sorted(best.times.items(), key=lambda item: item[1][Stage.DONE]):
        end, target = at[Stage.DONE], target_of[machine]
        before[target] += 1
        # The errors of so many machines' bytes are independent and partly make up for each other;
        # that of the link is the same for all.
        of_bytes = problem.bytes_uncertainty * end / math.sqrt(before[target])
        late = math.hypot(max(bad[machine][Stage.DONE] - end, 0.0), of_bytes)
        early = math.hypot(max(end - good[machine][Stage.DONE], 0.0), of_bytes)
        stint = Stint(
            machine=machine,
            target=target,
            begin_s=at[Stage.PREPARE],
            copy_s=at[Stage.COPY],
            end_s=end,
            end_low_s=max(end - early, 0.0),
            end_high_s=end + late,
            wire_bytes=best.sent[machine],
        )
        stints.append(stint)
    rank = {need.machine: n for n, need in enumerate(order(problem, best.targets))}
    stints.sort(key=lambda stint: (stint.begin_s, rank.get(stint.machine, -1), stint.machine))
    return Plan(
        stints=stints,
        lanes=best.lanes,
        stranded=_stranded(problem, set(target_of)),
        bound=bound_of(problem, set(target_of)),
    )


def bound_of(problem: Problem, machines: set[str]) -> Bound:
    """The lower bound for some of the machines: those that can be moved."""
    return lower_bound(
        evolve(problem, needs=[need for need in problem.needs if need.machine in machines])
    )


def _stranded(problem: Problem, placed: set[str]) -> dict[str, str]:
    stranded = {}
    for need in problem.needs:
        if need.machine in placed:
            continue
        reasons = [
            f"{target.node}: "
            + (problem.objection(need, target) or "no room is left beside those that go there")
            for target in problem.targets
        ]
        stranded[need.machine] = "; ".join(reasons) or "there is no target"
    return stranded


@define
class Steady:
    """Keeps the plan that is followed until another is better by a margin (hysteresis).

    Attributes:
        margin: The part of the time left that a new plan must save.
    """

    margin: float = 0.1
    changes: int = field(default=0, init=False)

    def choose(self, problem: Problem, present: Plan | None) -> tuple[Plan, bool]:
        """The plan to follow from now on, its times renewed, and whether it is another one."""
        fresh = make_plan(problem)
        if present is None:
            return fresh, True
        waiting = {need.machine for need in problem.needs}
        waiting -= {one.machine for one in problem.under_way}
        kept = {name: node for name, node in present.targets.items() if name in waiting}
        sound = _still_sound(problem, kept) and len(kept) >= len(fresh.targets) - len(
            problem.under_way
        )
        if sound:
            lanes = {
                target.node: present.lanes.get(target.node, LANES) for target in problem.targets
            }
            old = predict(problem, kept, lanes)
            if old.ends and old.makespan_s <= fresh.makespan_s / (1 - self.margin):
                return _plan(problem, old), False
        self.changes += 1
        return fresh, True


def _still_sound(problem: Problem, targets: Targets) -> bool:
    needs = {need.machine: need for need in problem.needs}
    nodes = {target.node: target for target in problem.targets}
    room = {target.node: target.free_memory_bytes for target in problem.targets}
    for machine, node in targets.items():
        if node not in nodes or problem.objection(needs[machine], nodes[node]):
            return False
        room[node] -= needs[machine].memory_bytes
    return all(left >= 0 for left in room.values())
