"""The kind of operation ``evacuate``: of this node, of another one, or of a whole site."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

from attrs import asdict, define, evolve, field
from novacron import (
    ConfigError,
    MigrationFailed,
    MigrationPlan,
    Node,
    NodeFacts,
    NotFound,
    NovacronError,
    Operation,
    OperationState,
    Refused,
    structure,
)

from novacron_placement_itp import _remote as remote
from novacron_placement_itp._drive import Cancels, Drive, ask_all, target_of
from novacron_placement_itp._evacuation import Evacuation, Rules, Survey
from novacron_placement_itp._forecast import Forecast, wire_bytes
from novacron_placement_itp._journal import Journal, read
from novacron_placement_itp._model import Need, Problem
from novacron_placement_itp._placement import ItpPlacement
from novacron_placement_itp._planner import make_plan
from novacron_placement_itp._settings import EVACUATE, EvacuateParameters, EvacuateSettings
from novacron_placement_itp._shape import plan_json

log = logging.getLogger("novacron.evacuate")

PLANS_AT_ONCE: Final = 4
Json = dict[str, Any]


class Evacuate:
    """The kind of operation."""

    name: ClassVar[str] = EVACUATE
    Settings: ClassVar[type] = EvacuateSettings
    Parameters: ClassVar[type] = EvacuateParameters

    def __init__(self, settings: EvacuateSettings, node: NodeFacts) -> None:
        self.settings = settings
        self.journal = Journal(node.state_dir / "operation-evacuate")
        self._busy: set[str] = set()

    async def run(self, node: Node, operation: Operation, parameters: EvacuateParameters) -> Json:
        here, place = node.facts.name, parameters.place
        if place in self.settings.sites:
            return await self._site(node, operation, parameters)
        cancels = Cancels(operation)
        if place in ("", here):
            return await self._here(node, operation, parameters, cancels, operation.report)
        if place not in node.config.peers:
            sites = ", ".join(self.settings.sites) or "none"
            raise NotFound(
                f"there is no node or site {place!r}",
                hint=f"peers: {', '.join(node.config.peers) or 'none'}; sites: {sites}",
            )
        wish = _for_peer(parameters, self._excluded(here, parameters) - {here})
        return await remote.ask(node, place, wish, operation, cancels)

    # This node.

    async def _here(
        self,
        node: Node,
        operation: Operation,
        parameters: EvacuateParameters,
        cancels: Cancels,
        report: Callable[..., None],
    ) -> Json:
        if node.facts.name in self._busy and not parameters.plan_only:
            raise Refused(
                f"{node.facts.name} is being evacuated already",
                hint="see `novacron operation list --state running`",
            )
        self._busy.add(node.facts.name)
        try:
            prepared = await self._prepared(node, operation, parameters)
            if isinstance(prepared, dict):
                return prepared
            core, targets, found = prepared
            report(plan=found.plan, machines=len(core.cases))
            drive = self._drive(
                node, operation, cancels, report, core, parameters, targets, found.forecast
            )
            drive.save()
            return await drive.run(found.survey)
        finally:
            self._busy.discard(node.facts.name)

    async def _prepared(
        self, node: Node, operation: Operation, parameters: EvacuateParameters
    ) -> Json | tuple[Evacuation, list[str], _Prepared]:
        """The plan alone, if only that was asked for, or all that is needed to begin."""
        operation.enter("plan")
        targets = self._targets(node, parameters)
        prepared = await self._prepare(node, parameters, targets)
        plan = await asyncio.to_thread(make_plan, prepared.problem)
        shown = plan_json(prepared.problem, plan)
        deadline = parameters.deadline_s
        if deadline is not None:
            shown["chance"] = round(plan.chance(deadline), 3)
        if parameters.plan_only:
            return {"plan": shown}
        if deadline is not None and plan.bound.seconds > deadline:
            raise Refused(
                f"it cannot be done in {deadline:,.0f} s: {plan.bound.why} alone takes "
                f"{plan.bound.seconds:,.0f} s at least",
                hint="allow more time, add targets, or leave machines out",
                truth="nothing was moved",
                plan=shown,
            )
        prepared.plan = shown
        core = Evacuation.of(
            prepared.problem.needs,
            self._rules(parameters),
            together=prepared.problem.together,
            apart=prepared.problem.apart,
        )
        return core, targets, prepared

    def _drive(
        self,
        node: Node,
        operation: Operation,
        cancels: Cancels,
        report: Callable[..., None],
        core: Evacuation,
        parameters: EvacuateParameters,
        targets: Sequence[str],
        forecast: Forecast,
    ) -> Drive:
        chosen = node.provider("placement")
        return Drive(
            node=node,
            operation=operation,
            cancels=cancels,
            report=report,
            core=core,
            settings=self.settings,
            parameters=parameters,
            targets=targets,
            forecast=forecast,
            journal=self.journal,
            placement=chosen if isinstance(chosen, ItpPlacement) else None,
        )

    def _rules(self, parameters: EvacuateParameters) -> Rules:
        settings = self.settings
        return Rules(
            attempts_max=settings.attempts_max,
            replan_s=settings.replan_s,
            target_patience_s=settings.target_patience_s,
            moves_max=settings.moves_max,
            prepare_s=settings.prepare_s,
            finish_s=settings.finish_s,
            deadline_s=parameters.deadline_s,
        )

    def _excluded(self, here: str, parameters: EvacuateParameters) -> set[str]:
        """Nodes that nothing may go to: those named, and those of the site that is left."""
        named = set(parameters.exclude).union(
            *(self.settings.sites.get(name, []) for name in parameters.exclude)
        )
        if parameters.place in self.settings.sites:
            named.update(self.settings.sites[parameters.place])
        return named | {here}

    def _targets(self, node: Node, parameters: EvacuateParameters) -> list[str]:
        peers = set(node.config.peers)
        wanted = set(parameters.to).union(
            *(self.settings.sites.get(name, []) for name in parameters.to)
        ) - set(self.settings.sites)
        if unknown := wanted - peers - {node.facts.name}:
            raise NotFound(
                f"there is no peer {', '.join(sorted(unknown))}",
                hint=f"known: {', '.join(sorted(peers)) or 'none'}",
            )
        targets = (wanted or peers) - self._excluded(node.facts.name, parameters)
        targets &= peers
        if not targets:
            raise Refused(
                "no node is left to move to", hint="add one under [peers], or exclude fewer"
            )
        return sorted(targets)

    async def _prepare(
        self, node: Node, parameters: EvacuateParameters, targets: Sequence[str]
    ) -> _Prepared:
        """Ask the targets, and for each machine and target what stands in the way."""
        settings, share = self.settings, parameters.share
        reports = await ask_all(node, targets)
        if not reports:
            raise Refused(f"none of {', '.join(targets)} answers", hint="see `novacron node peers`")
        forecast = Forecast(settings, share)
        machines = await node.machines()
        plans = await self._precheck(node, parameters, [m["name"] for m in machines], list(reports))
        needs = []
        for machine in machines:
            needs.append(self._need(machine, plans, forecast))
        for target, report in reports.items():
            told = [made.estimate for (_, to), made in plans.items() if to == target]
            forecast.know(target, report.rate_bytes_per_s, told[0] if told else None)
        survey = Survey(
            targets=[target_of(one, share, settings.reserve_bytes) for one in reports.values()],
            links=forecast.links(reports),
        )
        problem = Problem(
            needs=needs,
            targets=survey.targets,
            links=survey.links,
            together=[frozenset(group) for group in settings.together],
            apart=[frozenset(group) for group in settings.apart],
            prepare_s=settings.prepare_s,
            finish_s=settings.finish_s,
            moves_max=settings.moves_max,
        )
        return _Prepared(problem, survey, forecast)

    async def _precheck(
        self,
        node: Node,
        parameters: EvacuateParameters,
        machines: Sequence[str],
        targets: Sequence[str],
    ) -> dict[tuple[str, str], MigrationPlan]:
        """The plan of each machine's move to each target, with all that stands in its way."""
        turn = asyncio.Semaphore(PLANS_AT_ONCE)
        found: dict[tuple[str, str], MigrationPlan] = {}

        async def look(machine: str, target: str) -> None:
            async with turn:
                try:
                    found[machine, target] = await node.plan(machine, {"target": target})
                except NotFound:
                    return  # it was deleted meanwhile

        await asyncio.gather(*(look(machine, target) for machine in machines for target in targets))
        return found

    def _need(
        self,
        machine: Mapping[str, Any],
        plans: Mapping[tuple[str, str], MigrationPlan],
        forecast: Forecast,
    ) -> Need:
        name = machine["name"]
        mine = {target: plan for (of, target), plan in plans.items() if of == name}
        refused = {
            target: "; ".join(found.what for found in plan.obstacles if found.blocks)
            for target, plan in mine.items()
            if plan.blocked
        }
        used = int(machine["facts"].get("resident_bytes") or machine["memory_bytes"])
        estimate = next((plan.estimate for plan in mine.values()), None)
        return Need(
            machine=name,
            driver=machine["driver"],
            memory_bytes=machine["memory_bytes"],
            wire_bytes=wire_bytes(used, estimate, forecast.wire_part),
            rate_max=self.settings.move_rate_bytes_per_s or float("inf"),
            priority=self.settings.priorities.get(name, 0),
            refused=refused,
        )

    # After a restart.

    async def resume(self, node: Node, operation: Operation, values: Mapping[str, Any]) -> Json:
        """Go on with what an earlier run of the node left."""
        parameters = structure(EvacuateParameters, operation.request.parameters, EVACUATE)
        core = Evacuation.from_json(values["core"])
        targets = [str(name) for name in values["targets"] if name in node.config.peers]
        self._busy.add(node.facts.name)
        try:
            forecast = Forecast(self.settings, parameters.share)
            cancels = Cancels(operation)
            drive = self._drive(
                node, operation, cancels, operation.report, core, parameters, targets, forecast
            )
            drive.began = float(values["began"])
            return await drive.run()
        finally:
            self._busy.discard(node.facts.name)

    # A site.

    async def _site(self, node: Node, operation: Operation, parameters: EvacuateParameters) -> Json:
        """Each of the site's nodes evacuates itself; of what they share, each gets the part that
        its bytes are of all."""
        nodes = sorted(self.settings.sites[parameters.place])
        excluded = self._excluded(node.facts.name, parameters) | set(nodes)
        if node.facts.name not in nodes and node.facts.name not in parameters.exclude:
            excluded.discard(node.facts.name)
        operation.enter("plan")
        cancels = Cancels(operation)
        asking = evolve(parameters, plan_only=True)
        answers = await asyncio.gather(
            *(self._ask(node, name, asking, excluded, 1.0, operation, cancels) for name in nodes),
            return_exceptions=True,
        )
        plans: dict[str, Json] = {}
        failed: dict[str, str] = {}
        for name, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, dict):
                plans[name] = answer["plan"]
            elif isinstance(answer, NovacronError):
                failed[name] = str(answer)
            else:
                raise answer
        total = sum(plan["wire_bytes"] for plan in plans.values()) or 1
        shares = {name: plan["wire_bytes"] / total for name, plan in plans.items()}
        if parameters.plan_only:
            shared = await asyncio.gather(
                *(
                    self._ask(node, n, asking, excluded, s, operation, cancels)
                    for n, s in shares.items()
                    if s
                )
            )
            named = zip([n for n, s in shares.items() if s], shared, strict=True)
            return {"plans": {name: answer["plan"] for name, answer in named}, "failed": failed}
        operation.enter("evacuate")
        results = await asyncio.gather(
            *(
                self._ask(node, n, parameters, excluded, s, operation, cancels)
                for n, s in shares.items()
                if s
            ),
            return_exceptions=True,
        )
        return _merged(parameters.place, [n for n, s in shares.items() if s], results, failed)

    async def _ask(
        self,
        node: Node,
        name: str,
        parameters: EvacuateParameters,
        excluded: set[str],
        share: float,
        operation: Operation,
        cancels: Cancels,
    ) -> Json:
        wish = _for_peer(evolve(parameters, share=parameters.share * share), excluded - {name})
        if name == node.facts.name:
            own = structure(EvacuateParameters, wish, EVACUATE)

            def report(**figures: Any) -> None:
                nodes = dict(operation.progress.get("nodes") or {})
                operation.report(nodes=nodes | {name: {**nodes.get(name, {}), **figures}})

            return await self._here(node, operation, own, cancels, report)
        return await remote.ask(node, name, wish, operation, cancels)


@define
class _Prepared:
    problem: Problem
    survey: Survey
    forecast: Forecast
    plan: Json = field(factory=dict)


def _for_peer(parameters: EvacuateParameters, excluded: set[str]) -> Json:
    values = asdict(parameters)
    values |= {"place": "", "exclude": sorted(excluded)}
    return {name: value for name, value in values.items() if value is not None}


def _merged(
    site: str, nodes: Sequence[str], results: Sequence[Json | BaseException], failed: dict[str, str]
) -> Json:
    """One result of those of the site's nodes. Raises MigrationFailed if anything stayed."""
    merged: Json = {"nodes": {}, "moved": {}, "stayed": {}}
    for name, result in zip(nodes, results, strict=True):
        if isinstance(result, NovacronError):
            facts = result.facts
            failed[name] = str(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            facts = result
        merged["nodes"][name] = facts
        merged["moved"] |= facts.get("moved") or {}
        merged["stayed"] |= facts.get("stayed") or {}
    if failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in sorted(failed.items()))
        raise MigrationFailed(
            f"the site {site} is not empty: {reasons}",
            hint="cure the reasons and evacuate again: what has moved stays where it is",
            truth=f"{len(merged['moved'])} machines have moved",
            **merged,
        )
    return merged


async def take_up(node: Node) -> None:
    """Go on with the evacuations that an earlier run of the node left."""
    kind: Evacuate = node.provider("operation", EVACUATE)
    for operation_id, path in kind.journal:
        try:
            values, former = read(path), node.operations.get(operation_id)
            if former.finished and former.state is not OperationState.INTERRUPTED:
                kind.journal.remove(operation_id)  # it failed by a fault of ours
                continue
            Evacuation.from_json(values["core"])
        except (ConfigError, NotFound, KeyError, TypeError, ValueError) as error:
            log.error("%s is left alone: %s", path, error)
            continue

        async def work(operation: Operation, values: Mapping[str, Any] = values) -> Json:
            return await kind.resume(node, operation, values)

        await node.operations.begin(former.request, work, resumed=former.id)
