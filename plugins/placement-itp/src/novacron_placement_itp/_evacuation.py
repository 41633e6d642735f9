"""The evacuation as a protocol without I/O: events and the time in, actions out, in order.

The operation on a node and the simulator drive this same class. Its laws: no target is given more
than its memory, nothing is attempted more often than the rules say, a machine is given up only with
a reason, and at the end each has either moved or is named with why it stayed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from attrs import asdict, define, evolve, field, frozen

from novacron_placement_itp._fluid import Stage
from novacron_placement_itp._model import Link, Need, Plan, Problem, Target, UnderWay
from novacron_placement_itp._ranks import rank


class Status(StrEnum):
    """Of one machine."""

    WAITING = "waiting"
    MOVING = "moving"
    MOVED = "moved"
    STAYED = "stayed"


OVER: Final = (Status.MOVED, Status.STAYED)


@frozen(kw_only=True)
class Rules:
    """How an evacuation behaves.

    Attributes:
        attempts_max: For one machine, over all targets; and ``attempts_per_target_max``.
        backoff_s: After a failure, before the next attempt, times the attempts so far.
        replan_s: At least so long between two plans that nothing forces.
        drift: The part by which a link's forecast must have moved to be a reason for another plan.
        target_patience_s: A target that does not answer for so long is given up, and what is on its
            way there is cancelled; machines that can go nowhere else wait as long for it.
    """

    attempts_max: int = 4
    attempts_per_target_max: int = 2
    backoff_s: float = 2.0
    replan_s: float = 15.0
    drift: float = 0.1
    target_patience_s: float = 20.0
    moves_max: int = 0
    prepare_s: float = 3.0
    finish_s: float = 1.0
    strict: bool = True
    deadline_s: float | None = None


# Events.


@frozen
class Event:
    """Something that happened."""


@frozen
class Survey(Event):
    """Which targets answer now, with what they have free now, and what the links are forecast."""

    targets: Sequence[Target]
    links: Sequence[Link]


@frozen
class Planned(Event):
    """The answer to `MakePlan`; ``changed``: another one than the one that was followed."""

    plan: Plan
    changed: bool


@frozen
class Progress(Event):
    """A move goes on; bytes on the wire."""

    machine: str
    stage: Stage
    remaining_bytes: float
    dirty_bytes_per_s: float | None = None


@frozen
class Ended(Event):
    """A move has ended; ``again``: another attempt may end otherwise."""

    machine: str
    moved: bool
    reason: str = ""
    again: bool = True


@frozen
class Gone(Event):
    """A machine cannot be moved any more: it was stopped, deleted, or it is elsewhere (``where``)
    already."""

    machine: str
    reason: str
    where: str = ""


@frozen
class Cancel(Event):
    """Begin nothing more; ``hard``: cancel what is under way, too."""

    hard: bool = False


@frozen
class Tick(Event):
    """Time has passed."""


# Actions.


@frozen
class Action:
    """Something to do."""


@frozen
class MakePlan(Action):
    """Plan this, and answer with `Planned`."""

    problem: Problem
    present: Plan | None


@frozen
class Begin(Action):
    """Move a machine; answer with `Progress` and, once, `Ended`."""

    machine: str
    target: str
    priority: int


@frozen
class Stop(Action):
    """Cancel a move if it still can be; `Ended` follows in any case."""

    machine: str
    why: str


@frozen
class Save(Action):
    """Make the state (`Evacuation.to_json`) durable before the actions that follow."""


@frozen
class Say(Action):
    """Tell people."""

    text: str


@frozen
class Finish(Action):
    """It is over: every machine has moved or stayed with a reason."""


@define(kw_only=True)
class Case:
    """One machine.

    Attributes:
        reason: Why it stayed, or why its last attempt failed.
        attempts: Begun so far, by target.
        not_before_s: The next attempt.
        target: Where it is going, or has gone.
        stage: How far its move is, ``remaining_bytes`` what it has to send.
        stopping: Why its move is being cancelled, since ``stopped_s``.
    """

    need: Need
    status: Status = Status.WAITING
    target: str = ""
    reason: str = ""
    attempts: dict[str, int] = field(factory=dict)
    not_before_s: float = 0.0
    stage: Stage = Stage.PREPARE
    began_s: float = 0.0
    ended_s: float | None = None
    remaining_bytes: float = 0.0
    stopping: str = ""
    stopped_s: float = 0.0


@define(eq=False)
class Evacuation:
    """All of it."""

    rules: Rules
    cases: dict[str, Case]
    together: Sequence[frozenset[str]] = ()
    apart: Sequence[frozenset[str]] = ()
    plan: Plan | None = field(default=None, init=False)
    plans: int = field(default=0, init=False)
    cancelled: bool = field(default=False, init=False)
    finished: bool = field(default=False, init=False)
    _begun: int = field(default=0, init=False)
    _targets: dict[str, Target] = field(factory=dict, init=False)
    _links: Sequence[Link] = field(default=(), init=False)
    _first_free: dict[str, int] = field(factory=dict, init=False)
    _seen_s: dict[str, float] = field(factory=dict, init=False)
    _planning: bool = field(default=False, init=False)
    _planned_s: float = field(default=-1e9, init=False)
    _planned_rates: dict[str, float] = field(factory=dict, init=False)
    _stale: bool = field(default=True, init=False)
    _late: bool = field(default=False, init=False)

    @classmethod
    def of(
        cls,
        needs: Iterable[Need],
        rules: Rules,
        *,
        together: Sequence[frozenset[str]] = (),
        apart: Sequence[frozenset[str]] = (),
    ) -> Evacuation:
        cases = {need.machine: Case(need=need) for need in needs}
        return cls(rules, cases, together, apart)

    # What is asked of it.

    def handle(self, event: Event, now_s: float) -> tuple[Action, ...]:
        """Take an event; what must be done now, in this order. Seconds since it began."""
        if self.finished:
            return ()
        actions: list[Action] = []
        match event:
            case Survey():
                self._surveyed(event, now_s, actions)
            case Planned():
                self._take_plan(event, now_s, actions)
            case Progress():
                self._progressed(event)
            case Ended():
                self._ended(event, now_s, actions)
            case Gone():
                self._gone(event, now_s, actions)
            case Cancel():
                self._cancel(event, now_s, actions)
        self._stop_hopeless(now_s, actions)
        self._begin_ready(now_s, actions)
        self._plan_if_due(now_s, actions)
        self._finish_if_over(now_s, actions)
        return tuple(actions)

    def moving(self, target: str = "") -> list[Case]:
        return [
            case
            for case in self.cases.values()
            if case.status is Status.MOVING and target in ("", case.target)
        ]

    def waiting(self) -> list[Case]:
        return [case for case in self.cases.values() if case.status is Status.WAITING]

    def room(self, target: str) -> int:
        """Bytes of memory that may still be given to machines that have not begun."""
        free = self._targets[target].free_memory_bytes
        claimed = sum(
            case.need.memory_bytes
            for case in self.cases.values()
            if case.target == target and case.status in (Status.MOVING, Status.MOVED)
        )
        # A machine's memory fills while it arrives, so what is free now says too much.
        return max(min(free, self._first_free[target] - claimed), 0)

    def problem(self, now_s: float) -> Problem:
        """What is left to plan."""
        needs, under_way = [], []
        for case in self.cases.values():
            if case.status is Status.WAITING:
                needs.append(evolve(case.need, refused=self._refused(case)))
            elif (
                case.status is Status.MOVING
                and case.stage < Stage.FINISH
                and not case.stopping
                and case.target in self._targets
            ):
                needs.append(case.need)
                prepare = self.rules.prepare_s - (now_s - case.began_s)
                one = UnderWay(
                    machine=case.need.machine,
                    target=case.target,
                    remaining_bytes=case.remaining_bytes,
                    prepare_s=max(prepare, 0.0) if case.stage is Stage.PREPARE else 0.0,
                )
                under_way.append(one)
        return Problem(
            needs=needs,
            targets=[
                evolve(target, free_memory_bytes=self.room(name))
                for name, target in self._targets.items()
            ],
            links=self._links,
            under_way=under_way,
            together=self.together,
            apart=self.apart,
            prepare_s=self.rules.prepare_s,
            finish_s=self.rules.finish_s,
            moves_max=self.rules.moves_max,
            strict=self.rules.strict,
        )

    # Events.

    def _surveyed(self, survey: Survey, now_s: float, actions: list[Action]) -> None:
        fresh = {target.node: target for target in survey.targets}
        for name in fresh.keys() - self._targets.keys():
            self._stale = True
            if name in self._first_free:
                actions.append(Say(f"{name} answers again"))
            arrived = sum(
                case.need.memory_bytes
                for case in self.cases.values()
                if case.target == name and case.status in (Status.MOVING, Status.MOVED)
            )
            self._first_free[name] = fresh[name].free_memory_bytes + arrived
        for name in self._targets.keys() - fresh.keys():
            self._stale = True
            actions.append(Say(f"{name} does not answer"))
        for name in fresh:
            self._seen_s[name] = now_s
        self._targets, self._links = fresh, survey.links
        drift = self.rules.drift
        for link in survey.links:
            planned = self._planned_rates.get(link.name, link.rate)
            if abs(link.rate - planned) > drift * planned and self._may_replan(now_s):
                self._stale = True

    def _take_plan(self, planned: Planned, now_s: float, actions: list[Action]) -> None:
        self._planning = False
        self.plan = planned.plan
        if planned.changed:
            self.plans += 1
            end = self.plan.makespan_s
            what = "the plan" if self.plans == 1 else f"plan {self.plans}"
            text = f"{what}: {len(self.plan.stints)} machines in {end:,.0f} s"
            actions += [Say(text), Save()]
        deadline = self.rules.deadline_s
        late = deadline is not None and now_s + self.plan.makespan_s > deadline
        if late and not self._late:
            chance = self.plan.chance((deadline or 0.0) - now_s)
            actions.append(Say(f"the deadline is kept with a chance of {chance:.0%} now"))
        self._late = late

    def _progressed(self, progress: Progress) -> None:
        case = self.cases.get(progress.machine)
        if case is None or case.status is not Status.MOVING:
            return
        case.stage = progress.stage
        case.remaining_bytes = progress.remaining_bytes
        if progress.dirty_bytes_per_s is not None:
            case.need = evolve(case.need, dirty_bytes_per_s=progress.dirty_bytes_per_s)

    def _ended(self, ended: Ended, now_s: float, actions: list[Action]) -> None:
        case = self.cases.get(ended.machine)
        if case is None or (case.status is not Status.MOVING and not self._after_all(case, ended)):
            return
        if ended.moved:
            self._over(case, Status.MOVED, "", now_s)
            actions.append(Save())
            # A way that would lie idle is a reason to look at the plan again.
            self._stale = self._stale or not self._planned_for(case.target)
            return
        self._stale = True
        reason = case.stopping or ended.reason
        case.status, case.stopping = Status.WAITING, ""
        target, case.target = case.target, ""
        case.reason = f"{target}: {reason}"
        case.not_before_s = now_s + self.rules.backoff_s * sum(case.attempts.values())
        if not ended.again:
            case.need = evolve(case.need, refused=dict(case.need.refused) | {target: reason})
        actions.append(Say(f"{ended.machine} did not move to {target}: {reason}"))
        if sum(case.attempts.values()) >= self.rules.attempts_max:
            tries = sum(case.attempts.values())
            self._over(case, Status.STAYED, f"{tries} attempts failed, the last: {reason}", now_s)
        elif self.cancelled:
            self._over(case, Status.STAYED, "the evacuation was cancelled", now_s)
        actions.append(Save())

    def _after_all(self, case: Case, ended: Ended) -> bool:
        """Whether a hand-over that was not waited for any more has come to its end."""
        return ended.moved and case.status is Status.STAYED and case.target != ""

    def _gone(self, gone: Gone, now_s: float, actions: list[Action]) -> None:
        case = self.cases.get(gone.machine)
        if case is None or case.status in OVER:
            return
        self._stale = True
        case.target = gone.where
        self._over(case, Status.MOVED if gone.where else Status.STAYED, gone.reason, now_s)
        actions += [Say(f"{gone.machine}: {gone.reason}"), Save()]

    def _cancel(self, cancel: Cancel, now_s: float, actions: list[Action]) -> None:
        self.cancelled = True
        for case in self.waiting():
            self._over(case, Status.STAYED, "the evacuation was cancelled", now_s)
        for case in self.moving() if cancel.hard else ():
            if not case.stopping:
                case.stopping = "the evacuation was cancelled"
                case.stopped_s = now_s
                actions.append(Stop(case.need.machine, case.stopping))
        actions.append(Save())

    # What follows.

    def _over(self, case: Case, status: Status, reason: str, now_s: float) -> None:
        case.status, case.reason, case.ended_s = status, reason, now_s
        case.stopping, case.remaining_bytes = "", 0.0

    def _refused(self, case: Case) -> Mapping[str, str]:
        """Targets that this machine does not try any more."""
        most = self.rules.attempts_per_target_max
        worn = {
            target: f"{count} attempts failed ({case.reason})"
            for target, count in case.attempts.items()
            if count >= most
        }
        return {**worn, **case.need.refused}

    def _lost(self, target: str, now_s: float) -> bool:
        gone_s = now_s - self._seen_s.get(target, 0.0)
        return target not in self._targets and gone_s > self.rules.target_patience_s

    def _stop_hopeless(self, now_s: float, actions: list[Action]) -> None:
        for case in self.moving():
            if self._lost(case.target, now_s) and not case.stopping:
                case.stopping = f"{case.target} does not answer"
                case.stopped_s = now_s
                actions.append(Stop(case.need.machine, case.stopping))
            elif self._lost(case.target, now_s) and self._outwaited(case, now_s):
                # It was too late to cancel. The node sees to it that it runs once; we wait no more.
                reason = f"it was being handed over to {case.target}, which does not answer"
                actions.append(Say(f"{case.need.machine}: {reason}"))
                self._over(case, Status.STAYED, reason, now_s)
                actions.append(Save())

    def _outwaited(self, case: Case, now_s: float) -> bool:
        return now_s - case.stopped_s > self.rules.target_patience_s

    def _begin_ready(self, now_s: float, actions: list[Action]) -> None:
        if self.plan is None or self.cancelled:
            return
        moving = self.moving()
        busy = Counter(case.target for case in moving if case.stage < Stage.FINISH)
        begun = len(moving)
        for stint in self.plan.stints:
            case = self.cases[stint.machine]
            if case.status is not Status.WAITING or case.not_before_s > now_s:
                continue
            if self.rules.moves_max and begun >= self.rules.moves_max:
                return
            if busy[stint.target] >= self.plan.lanes.get(stint.target, 1):
                continue
            if not self._may_begin(case, stint.target):
                continue
            busy[stint.target] += 1
            begun += 1
            case.status, case.target, case.stage = Status.MOVING, stint.target, Stage.PREPARE
            case.attempts[stint.target] = case.attempts.get(stint.target, 0) + 1
            case.began_s, case.remaining_bytes = now_s, case.need.wire_bytes
            self._begun += 1
            # Who began first is first on the link, among those whom the operator ranks alike.
            place = rank(case.need.priority, self._begun)
            actions += [Save(), Begin(stint.machine, stint.target, place)]

    def _may_begin(self, case: Case, target: str) -> bool:
        if target not in self._targets or target in self._refused(case):
            return False
        if case.need.memory_bytes > self.room(target):
            return False
        return not self._must_part(case, target)

    def _must_part(self, case: Case, target: str) -> bool:
        name = case.need.machine
        placed = (Status.MOVING, Status.MOVED)
        there = {
            one.need.machine
            for one in self.cases.values()
            if one.target == target and one.status in placed
        }
        elsewhere = {
            one.need.machine
            for one in self.cases.values()
            if one.target not in ("", target) and one.status in placed
        }
        return any(name in group and group & there for group in self.apart) or any(
            name in group and group & elsewhere for group in self.together
        )

    def _planned_for(self, target: str) -> bool:
        """Whether somebody goes there, or waits to."""
        going = {case.need.machine for case in self.waiting()}
        stints = self.plan.stints if self.plan else ()
        planned = any(stint.target == target and stint.machine in going for stint in stints)
        return planned or bool(self.moving(target))

    def _may_replan(self, now_s: float) -> bool:
        return now_s - self._planned_s >= self.rules.replan_s

    def _plan_if_due(self, now_s: float, actions: list[Action]) -> None:
        if self._planning or self.cancelled or not self.waiting() or not self._seen_s:
            return
        if not self._stale and not self._may_replan(now_s):
            return
        self._stale, self._planning, self._planned_s = False, True, now_s
        self._planned_rates = {link.name: link.rate for link in self._links}
        actions.append(MakePlan(self._parting(self.problem(now_s)), self.plan))

    def _parting(self, problem: Problem) -> Problem:
        """The problem, with what has moved already parting and drawing those that follow."""
        needs = []
        for need in problem.needs:
            case = self.cases[need.machine]
            refused = dict(need.refused)
            for target in problem.targets if case.status is Status.WAITING else ():
                if self._must_part(case, target.node):
                    refused.setdefault(target.node, "its group does not allow it there")
            needs.append(evolve(need, refused=refused))
        return evolve(problem, needs=needs)

    def _finish_if_over(self, now_s: float, actions: list[Action]) -> None:
        if self.moving():
            return
        waiting = self.waiting()
        if waiting and self._nothing_to_hope_for(now_s):
            for case in waiting:
                name = case.need.machine
                reason = self.plan.stranded.get(name, "") if self.plan else ""
                self._over(case, Status.STAYED, reason or case.reason or "no target answers", now_s)
            actions.append(Save())
            waiting = []
        if not waiting:
            self.finished = True
            actions.append(Finish())

    def _nothing_to_hope_for(self, now_s: float) -> bool:
        """Nothing moves, and no plan of what is known now moves anything."""
        if not self._seen_s:
            return now_s > self.rules.target_patience_s
        if any(not self._lost(name, now_s) for name in self._seen_s.keys() - self._targets.keys()):
            return False
        if self._planning or self._stale or self.plan is None:
            return False
        # Whoever waits after a failure is in the plan, so it is not stranded.
        return all(case.need.machine in self.plan.stranded for case in self.waiting())

    # Durable.

    def to_json(self) -> dict[str, Any]:
        """What must survive the node."""
        return {
            "rules": asdict(self.rules),
            "cancelled": self.cancelled,
            "plans": self.plans,
            "together": [sorted(group) for group in self.together],
            "apart": [sorted(group) for group in self.apart],
            "cases": {name: _case_json(case) for name, case in self.cases.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evacuation:
        """The inverse. What was moving is found as it is by the caller: see `Gone`, `Ended`.

        Raises: KeyError, TypeError, ValueError if it is damaged.
        """
        made = cls(
            Rules(**values["rules"]),
            {str(name): _case(case) for name, case in values["cases"].items()},
            [frozenset(group) for group in values["together"]],
            [frozenset(group) for group in values["apart"]],
        )
        made.cancelled, made.plans = bool(values["cancelled"]), int(values["plans"])
        return made


def _case_json(case: Case) -> dict[str, Any]:
    need = asdict(case.need)
    # JSON has no infinity.
    need["rate_max"] = need["rate_max"] if need["rate_max"] != float("inf") else None
    return {
        "need": need,
        "status": case.status.value,
        "target": case.target,
        "reason": case.reason,
        "attempts": dict(case.attempts),
        "ended_s": case.ended_s,
    }


def _case(values: Mapping[str, Any]) -> Case:
    need = dict(values["need"])
    if need.get("rate_max") is None:
        need["rate_max"] = float("inf")
    return Case(
        need=Need(**need),
        status=Status(values["status"]),
        target=str(values["target"]),
        reason=str(values["reason"]),
        attempts={str(name): int(count) for name, count in values["attempts"].items()},
        ended_s=values["ended_s"],
    )
