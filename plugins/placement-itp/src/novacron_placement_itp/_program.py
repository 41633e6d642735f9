"""The assignment of machines to targets as a (mixed-integer) linear program, solved by HiGHS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from attrs import define, field, frozen

from novacron_placement_itp._model import Need, Problem, UnderWay

# A machine that is left behind costs as much as so many times all the others.
_STRANDED: Final = 10.0
_GAP: Final = 0.002
_NODES_MAX: Final = 400
_SECONDS_MAX: Final = 5.0

Pair = tuple[str, str]


@frozen
class Solution:
    """``seconds``: of bytes flowing; ``part``: how much of a machine goes to a target;
    ``why``: what has no time to spare. Infinite, and nothing, if none was found in time."""

    seconds: float
    part: Mapping[Pair, float]
    why: str

    def targets(self) -> dict[str, str]:
        """The target of each machine that goes as a whole."""
        return {machine: target for (machine, target), part in self.part.items() if part > 0.5}


@frozen
class _Row:
    """``low`` <= sum of the columns times their factors <= ``high``."""

    factors: Mapping[int, float]
    low: float
    high: float
    name: str = ""


@define(eq=False)
class Program:
    """Variables: a part from 0 to 1 of each machine for each target that can take it, and the time.

    Args:
        whole: Machines go as a whole (integers), or may be cut (a relaxation).
        carry: What a link carries in place of its rate, by the link's name, where that is less.
    """

    problem: Problem
    whole: bool
    carry: Mapping[str, float] = field(factory=dict)
    _needs: dict[str, Need] = field(init=False)
    _under_way: dict[str, UnderWay] = field(init=False)
    _able: dict[str, list[str]] = field(init=False)
    _column: dict[Pair, int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        problem = self.problem
        self._needs = {need.machine: need for need in problem.needs}
        self._under_way = {one.machine: one for one in problem.under_way}
        self._able = {}
        for need in problem.needs:
            able = [t.node for t in problem.targets if not problem.objection(need, t)]
            if able and need.machine not in self._under_way:
                self._able[need.machine] = able
        pairs = [(machine, target) for machine, able in self._able.items() for target in able]
        self._column = {pair: column for column, pair in enumerate(pairs)}

    @property
    def empty(self) -> bool:
        return not self._able and not self._under_way

    def edges_s(self) -> float:
        """Seconds at the beginning and at the end in which no byte can flow."""
        before = [one.prepare_s for one in self.problem.under_way]
        if self._able:
            before.append(self.problem.prepare_s)
        return min(before, default=0.0) + self.problem.finish_s

    def solve(self, hint: Mapping[str, str] | None = None) -> Solution:
        """The shortest time in which all bytes can flow.

        Args:
            hint: A target for each machine, to begin the search with.
        """
        # Loading them takes half a second, and most nodes never evacuate.
        import highspy
        import numpy as np

        parts, behind = len(self._column), len(self._able) if self.whole else 0
        time = parts + behind
        cost = [0.0] * parts + [self._weight(name) for name in self._able][:behind] + [1.0]
        rows = [*self._everybody_goes(parts), *self._loads(time), *self._memory(), *self._groups()]
        model = highspy.Highs()  # type: ignore[no-untyped-call]
        options = {"output_flag": False, "threads": 1, "mip_rel_gap": _GAP}
        options |= {"mip_max_nodes": _NODES_MAX, "time_limit": _SECONDS_MAX}
        for name, value in options.items():
            model.setOptionValue(name, value)
        for column, weight in enumerate(cost):
            model.addVar(0.0, math.inf if column == time else 1.0)
            model.changeColCost(column, weight)
            if self.whole and column < parts:
                model.changeColIntegrality(column, highspy.HighsVarType.kInteger)
        for row in rows:
            columns = np.array(list(row.factors), dtype=np.int32)
            factors = np.array(list(row.factors.values()), dtype=np.float64)
            model.addRow(row.low, row.high, len(columns), columns, factors)
        if hint:
            chosen = [self._column[pair] for pair in hint.items() if pair in self._column]
            model.setSolution(len(chosen), np.array(chosen, dtype=np.int32), np.ones(len(chosen)))
        model.run()
        solution = model.getSolution()
        if not solution.value_valid:
            return Solution(math.inf, {}, "")
        values = list(solution.col_value)
        found = {pair: float(values[column]) for pair, column in self._column.items()}
        return Solution(float(values[time]) * self._unit_s(), found, self._busiest(rows, values))

    def _weight(self, machine: str) -> float:
        """What it costs to leave a machine behind."""
        return _STRANDED * (1 + len(self._able)) * (1 + max(self._needs[machine].priority, 0))

    def _unit_s(self) -> float:
        """About the answer: the solver's tolerances are about 1e-6 of what it works with."""
        total = 1.0 + sum(need.wire_bytes for need in self.problem.needs)
        ways = [self.problem.rate_to(target.node) for target in self.problem.targets]
        return total / (sum(rate for rate in ways if math.isfinite(rate)) or total)

    def _parts(self, machine: str) -> dict[int, float]:
        return {self._column[machine, target]: 1.0 for target in self._able[machine]}

    def _everybody_goes(self, parts: int) -> Iterator[_Row]:
        for number, machine in enumerate(self._able):
            factors = self._parts(machine)
            if self.whole:
                factors[parts + number] = 1.0
            yield _Row(factors, 1.0, 1.0)

    def _loads(self, time: int) -> Iterator[_Row]:
        """What a link or a machine is busy for is at most the time."""
        problem, unit = self.problem, self._unit_s()
        fixed = dict(self._under_way_bytes())
        for link in problem.links:
            rate = min(self.carry.get(link.name, math.inf), link.rate) * unit
            factors = {
                column: problem.fewest_bytes(self._needs[machine], target) / rate
                for (machine, target), column in self._column.items()
                if target in link.targets
            }
            busy = sum(n for name, n in fixed.items() if self._goes_over(name, link.targets)) / rate
            yield _Row(factors | {time: -1.0}, -math.inf, -busy, link.name)
        for machine, able in self._able.items():
            need = self._needs[machine]
            factors = {self._column[machine, t]: problem.copy_s(need, t) / unit for t in able}
            yield _Row(factors | {time: -1.0}, -math.inf, 0.0, f"the machine {machine} alone")
        for machine, count in fixed.items():
            rate = problem.copy_rate(self._needs[machine], self._under_way[machine].target) * unit
            yield _Row({time: -1.0}, -math.inf, -count / rate, f"the machine {machine} alone")

    def _goes_over(self, machine: str, targets: Iterable[str]) -> bool:
        return self._under_way[machine].target in targets

    def _under_way_bytes(self) -> Iterator[tuple[str, float]]:
        """The fewest that each move under way still sends."""
        for name, one in self._under_way.items():
            need = self._needs[name]
            rate = self.problem.copy_rate(need, one.target)
            ends = math.isfinite(rate) and need.dirty_bytes_per_s < rate
            yield (
                name,
                one.remaining_bytes * (rate / (rate - need.dirty_bytes_per_s) if ends else 1.0),
            )

    def _memory(self) -> Iterator[_Row]:
        for target in self.problem.targets:
            room = max(target.free_memory_bytes, 1)
            factors = {
                self._column[machine, target.node]: self._needs[machine].memory_bytes / room
                for machine, able in self._able.items()
                if target.node in able
            }
            yield _Row(factors, -math.inf, 1.0)

    def _groups(self) -> Iterator[_Row]:
        """Who must end together, and who must not."""
        fixed = {name: one.target for name, one in self._under_way.items()}
        for target in (target.node for target in self.problem.targets):
            for group in self.problem.apart:
                there = sum(fixed.get(machine) == target for machine in group)
                factors = {
                    self._column[machine, target]: 1.0
                    for machine in sorted(group)
                    if (machine, target) in self._column
                }
                yield _Row(factors, -math.inf, max(1.0 - there, 0.0))
            for group in self.problem.together:
                yield from self._together(sorted(group), target, fixed)

    def _together(self, group: list[str], target: str, fixed: Mapping[str, str]) -> Iterator[_Row]:
        bound = {fixed[machine] for machine in group if machine in fixed}
        members = [machine for machine in group if machine in self._able]
        columns = [self._column.get((machine, target)) for machine in members]
        if (bound and target not in bound) or None in columns:
            for column in columns:
                if column is not None:
                    yield _Row({column: 1.0}, 0.0, 0.0)
            return
        first, *others = [column for column in columns if column is not None] or [-1]
        for column in others:
            yield _Row({first: 1.0, column: -1.0}, 0.0, 0.0)

    def _busiest(self, rows: Iterable[_Row], values: list[float]) -> str:
        """The name of the load that leaves the least time unused."""
        slack = {
            row.name: row.high - sum(values[c] * f for c, f in row.factors.items())
            for row in rows
            if row.name
        }
        return min(slack, key=lambda name: round(slack[name], 6), default="")
