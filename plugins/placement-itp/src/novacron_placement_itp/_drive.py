"""The evacuation on a real node: performs what `Evacuation` asks for, and tells it what happens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from attrs import define, field
from novacron import (
    Cancelled,
    ConfigError,
    MigrationFailed,
    Node,
    NodeReport,
    NotFound,
    NovacronError,
    Operation,
    OperationRequest,
    OperationState,
    Refused,
)

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
    Save,
    Say,
    Status,
    Stop,
    Survey,
    Tick,
)
from novacron_placement_itp._fluid import Stage
from novacron_placement_itp._forecast import Forecast
from novacron_placement_itp._journal import Journal
from novacron_placement_itp._model import Plan, Problem, Target
from novacron_placement_itp._paces import Paces
from novacron_placement_itp._placement import Claim, ItpPlacement
from novacron_placement_itp._planner import Steady
from novacron_placement_itp._settings import EvacuateParameters, EvacuateSettings
from novacron_placement_itp._shape import plan_json, summary

log = logging.getLogger("novacron.evacuate")

TICK_S: Final = 0.5
SURVEY_S: Final = 5.0
# The phases of a migrate operation in which its bytes flow or have flowed.
_COPIES: Final = ("copy",)
_PREPARES: Final = ("requested", "plan", "prepare", "wait")


Canceller = Callable[[], Awaitable[None]]


@define(eq=False)
class Cancels:
    """What a wish to cancel an operation reaches: each part of it, and each again if it is wished
    a second time."""

    operation: Operation
    _parts: list[Canceller] = field(factory=list, init=False)

    def add(self, part: Canceller) -> None:
        self._parts.append(part)
        self.operation.on_cancel(self._cancel)

    async def _cancel(self) -> None:
        for part in self._parts:
            await part()


@define(eq=False)
class Drive:
    """One evacuation of this node.

    Attributes:
        cancels: Where its own way to be cancelled is added.
        report: Renews figures of progress.
        targets: The peers that machines may go to.
        began: Seconds since the epoch.
    """

    node: Node
    operation: Operation
    cancels: Cancels
    report: Callable[..., None]
    core: Evacuation
    settings: EvacuateSettings
    parameters: EvacuateParameters
    targets: Sequence[str]
    forecast: Forecast
    journal: Journal
    placement: ItpPlacement | None = None
    began: float = field(factory=time.time)
    _events: asyncio.Queue[Event] = field(factory=asyncio.Queue, init=False)
    _moves: dict[str, Operation] = field(factory=dict, init=False)
    _tasks: set[asyncio.Task[None]] = field(factory=set, init=False)
    _steady: Steady = field(init=False)
    _sent: Counter[str] = field(factory=Counter, init=False)
    _shown: dict[str, Any] = field(factory=dict, init=False)
    _paces: Paces = field(factory=Paces, init=False)
    _wished: bool = field(default=False, init=False)
    _shown_at: int = field(default=-1, init=False)
    _plan: dict[str, Any] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._steady = Steady(self.settings.margin)

    @property
    def now_s(self) -> float:
        return max(time.time() - self.began, 0.0)

    async def run(self, survey: Survey | None = None) -> dict[str, Any]:
        """Until every machine has moved or stayed with a reason; the operation's result.

        Raises: Cancelled; MigrationFailed if a machine stayed. Both name what holds now.
        """
        self.cancels.add(self._cancel)
        self.operation.enter("evacuate")
        try:
            for event in await self._found() if survey is None else [survey]:
                await self._feed(event)
            self._background(self._survey_forever())
            while not self.core.finished:
                try:
                    async with asyncio.timeout(TICK_S):
                        event = await self._events.get()
                except TimeoutError:
                    event = Tick()
                    for progress in self._look():
                        await self._feed(progress)
                await self._feed(event)
                self._show()
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self.placement is not None:
                self.placement.planned = {}
        self.journal.remove(self.operation.id)
        return self._result()

    def _result(self) -> dict[str, Any]:
        result = summary(self.core) | {"seconds": round(self.now_s, 1)}
        del result["moving"], result["waiting"]
        stayed: dict[str, str] = result["stayed"]
        here = self.node.facts.name
        truth = f"{len(result['moved'])} of {len(self.core.cases)} machines have moved from {here}"
        if self.core.cancelled:
            raise Cancelled(f"the evacuation of {here} was cancelled", truth=truth, **result)
        if stayed:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(stayed.items()))
            raise MigrationFailed(
                f"{len(stayed)} machines stayed on {here}: {reasons}",
                hint="cure the reasons and evacuate again: what has moved stays where it is",
                truth=truth,
                **result,
            )
        return result

    # Events.

    async def _feed(self, event: Event) -> None:
        queue = [event]
        while queue:
            for action in self.core.handle(queue.pop(0), self.now_s):
                match action:
                    case MakePlan(problem, present):
                        self._background(self._make_plan(problem, present))
                    case Begin(machine, target, priority):
                        self._background(self._move(machine, target, priority))
                    case Stop(machine, why):
                        await self._stop(machine, why)
                    case Save():
                        self.save()
                    case Say(text):
                        self.operation.tell("message", {"text": text})

    def save(self) -> None:
        values = {"core": self.core.to_json(), "began": self.began, "targets": list(self.targets)}
        self.journal.write(self.operation.id, values)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except (NovacronError, OSError) as error:
                log.error("%s: %s", self.operation.id, error)

        task = asyncio.create_task(guarded(), name=f"{self.operation.id} evacuate")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self) -> None:
        """The first wish to cancel lets what is under way end, the second cancels that too."""
        hard, self._wished = self._wished, True
        moving = sorted(case.need.machine for case in self.core.moving())
        what = "cancelled if they still can be" if hard else "finished"
        text = f"nothing more is begun; under way and to be {what}: {', '.join(moving) or 'none'}"
        self.operation.tell("message", {"text": text})
        self._events.put_nowait(Cancel(hard=hard))

    async def _make_plan(self, problem: Problem, present: Plan | None) -> None:
        plan, changed = await asyncio.to_thread(self._steady.choose, problem, present)
        self._plan = plan_json(problem, plan) | {"at_s": round(self.now_s, 1)}
        if self.placement is not None:
            self.placement.planned = _claims(problem, plan)
        self._events.put_nowait(Planned(plan, changed))

    # Moves.

    async def _move(self, machine: str, target: str, priority: int) -> None:
        """Begin a move and wait for its end."""
        parameters: dict[str, Any] = {"target": target, "priority": priority}
        if self.parameters.slow_guest:
            parameters["slow_guest"] = True
        request = OperationRequest(
            kind="migrate",
            machine=machine,
            subject=self.operation.request.subject,
            parameters=parameters,
        )
        try:
            state = (await self.node.machine(machine))["state"]
            if state not in ("running", "paused"):
                self._events.put_nowait(Gone(machine, f"it is {state}"))
                return
            move = await self.node.submit(request)
        except NotFound:
            await self._look_for(machine)
            return
        except NovacronError as error:
            again = not isinstance(error, Refused | ConfigError)
            self._events.put_nowait(Ended(machine, moved=False, reason=str(error), again=again))
            return
        await self._watch(machine, move)

    async def _watch(self, machine: str, move: Operation) -> None:
        self._moves[machine] = move
        try:
            await move.wait()
        finally:
            self._moves.pop(machine, None)
            target = str(move.request.parameters.get("target", ""))
            self._sent[target] += int(move.progress.get("wire_bytes") or 0)
        if move.state is OperationState.SUCCEEDED:
            self._paces.ended(machine, self.now_s - self.core.cases[machine].began_s)
            self.core.rules = self._paces.applied(self.core.rules)
            raw, wire = move.result.get("raw_bytes"), move.result.get("wire_bytes")
            if raw and wire:
                self.forecast.moved(int(raw), int(wire))
            self._events.put_nowait(Ended(machine, moved=True))
            return
        reason = str(move.error.get("message") or move.state.value)
        if not await self._look_for(machine):
            again = move.error.get("code") not in (Refused.code, ConfigError.code)
            self._events.put_nowait(Ended(machine, moved=False, reason=reason, again=again))

    async def _look_for(self, machine: str) -> bool:
        """Tell where a machine is that is not, or not any more, this node's; whether it is so."""
        record = await self.node.register.read(machine)
        here = self.node.facts.name
        if record is None:
            self._events.put_nowait(Gone(machine, "it was deleted"))
        elif record.owner != here:
            where = f"{record.owner} owns it already"
            self._events.put_nowait(Gone(machine, where, record.owner))
        return record is None or record.owner != here

    async def _stop(self, machine: str, why: str) -> None:
        move = self._moves.get(machine)
        if move is None:
            return
        try:
            await self.node.operations.cancel(move.id)
        except NovacronError as error:
            log.info("%s is not cancelled (%s): %s", machine, why, error)

    def _look(self) -> list[Progress]:
        """How far the moves are, and what went over each way."""
        sent, copying = Counter(self._sent), Counter[str]()
        found = []
        for machine, move in self._moves.items():
            case, figures = self.core.cases[machine], move.progress
            stage = Stage.FINISH
            if move.phase in _PREPARES:
                stage = Stage.PREPARE
            elif move.phase in _COPIES:
                stage = Stage.COPY
                copying[case.target] += 1
            self._paces.see(machine, stage, self.now_s - case.began_s)
            wire = int(figures.get("wire_bytes") or 0)
            sent[case.target] += wire
            raw, left = figures.get("raw_bytes") or 0, figures.get("remaining_bytes")
            remaining = case.remaining_bytes
            if isinstance(left, int | float):
                remaining = left * (wire / raw if raw > 1 << 20 else self.forecast.wire_part)
            dirty = figures.get("dirty_bytes_per_s")
            part = wire / raw if raw > 1 << 20 else self.forecast.wire_part
            writes = None if dirty is None or stage is not Stage.COPY else float(dirty) * part
            found.append(Progress(machine, stage, float(remaining), writes))
        for target in self.targets:
            self.forecast.saw(target, self.now_s, sent[target], copying[target] > 0)
        return found

    # What the world looks like.

    async def _survey_forever(self) -> None:
        while True:
            self._events.put_nowait(await survey(self))
            await asyncio.sleep(SURVEY_S)

    async def _found(self) -> list[Event]:
        """After a restart: what has become of the machines meanwhile."""
        under_way = {
            operation.request.machine: operation
            for operation in self.node.operations.list()
            if operation.request.kind == "migrate" and not operation.finished
        }
        for name, case in self.core.cases.items():
            if case.status is Status.MOVING and name in under_way:
                self._background(self._watch(name, under_way[name]))
                continue
            if case.status not in (Status.MOVING, Status.WAITING) or await self._look_for(name):
                continue
            if case.status is Status.MOVING:
                reason = "the node was restarted"
                self._events.put_nowait(Ended(name, moved=False, reason=reason))
        return [await survey(self)]

    # What is shown.

    def _show(self) -> None:
        """Renew the operation's progress when something has changed."""
        shown = summary(self.core)
        figures: dict[str, Any] = {
            "machines": len(self.core.cases),
            "moved": len(shown["moved"]),
            "moving": shown["moving"],
            "waiting": len(shown["waiting"]),
            "stayed": shown["stayed"],
            "plans": shown["plans"],
            "plan": self._plan,
        }
        if self._plan:
            gone_s = self.now_s - self._plan["at_s"]
            for name, key in (
                ("eta_s", "makespan_s"),
                ("eta_low_s", "makespan_low_s"),
                ("eta_high_s", "makespan_high_s"),
            ):
                seconds = self._plan[key]
                figures[name] = None if seconds is None else round(max(seconds - gone_s, 0.0))
        moment = int(self.now_s / TICK_S)
        if figures != self._shown and (moment != self._shown_at or self.core.finished):
            self._shown, self._shown_at = figures, moment
            self.report(**figures)


async def survey(drive: Drive) -> Survey:
    """Ask all targets what they have free now."""
    reports = await ask_all(drive.node, drive.targets)
    for report in reports.values():
        drive.forecast.know(report.node, report.rate_bytes_per_s)
    share, reserve = drive.parameters.share, drive.settings.reserve_bytes
    return Survey(
        targets=[target_of(report, share, reserve) for report in reports.values()],
        links=drive.forecast.links(reports),
    )


def target_of(report: NodeReport, share: float, reserve_bytes: int) -> Target:
    free = max(int((report.free_memory_bytes - reserve_bytes) * share), 0)
    return Target(node=report.node, free_memory_bytes=free, drivers=tuple(report.drivers))


async def ask_all(node: Node, peers: Sequence[str]) -> dict[str, NodeReport]:
    """What those say that answer."""
    answers = await asyncio.gather(*(node.probe(peer) for peer in peers), return_exceptions=True)
    found = {}
    for peer, answer in zip(peers, answers, strict=True):
        if isinstance(answer, NodeReport):
            found[peer] = answer
        elif not isinstance(answer, NovacronError | OSError):
            raise answer
    return found


def _claims(problem: Problem, plan: Plan) -> Mapping[str, Claim]:
    needs = {need.machine: need for need in problem.needs}
    claims = {}
    for target in {stint.target for stint in plan.stints}:
        there = [stint for stint in plan.stints if stint.target == target]
        memory = sum(needs[stint.machine].memory_bytes for stint in there)
        claims[target] = Claim(memory_bytes=memory, busy_s=max(stint.end_s for stint in there))
    return claims
