"""The provider: reject what does not fit, then take the shortest move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from attrs import field, frozen, validators
from novacron import Choice, MachineSpec, NodeFacts, NodeReport, Refused


@frozen(kw_only=True)
class FitSettings:
    """The section ``[placement.fit]``.

    Attributes:
        reserve_bytes: Memory that must stay free on the target beside the machine.
        assumed_window_bytes: What is taken to be in flight on a link whose rate was never measured:
            its rate is then this much per round trip.
        assumed_rate_max_bytes_per_s: The most that is assumed of such a link.
    """

    reserve_bytes: int = field(default=256 << 20, validator=validators.ge(0))
    assumed_window_bytes: int = field(default=4 << 20, validator=validators.gt(0))
    assumed_rate_max_bytes_per_s: int = field(default=125_000_000, validator=validators.gt(0))


@frozen
class _Move:
    """One candidate that fits, and what moving there would take."""

    report: NodeReport
    seconds: float
    how: str

    @property
    def rank(self) -> tuple[int, int, str]:
        # Differences below a millisecond are noise of the measurement, not a reason.
        return (round(self.seconds * 1000), -self.report.free_memory_bytes, self.report.node)


class FitPlacement:
    """Chooses by free memory and measured link."""

    name: ClassVar[str] = "fit"
    Settings: ClassVar[type] = FitSettings

    def __init__(self, settings: FitSettings, node: NodeFacts) -> None:
        self._settings = settings

    def choose(self, machine: MachineSpec, candidates: Sequence[NodeReport]) -> Choice:
        if len({report.node for report in candidates}) != len(candidates):
            raise ValueError("two of the candidates have the same name")
        rejected: dict[str, str] = {}
        moves: list[_Move] = []
        for report in sorted(candidates, key=lambda candidate: candidate.node):
            objection = self._objection(machine, report)
            if objection:
                rejected[report.node] = objection
            else:
                rate, how = self._rate(report)
                moves.append(_Move(report, machine.memory_bytes / rate, how))
        if not moves:
            raise self._refused(machine, rejected)
        best, *others = sorted(moves, key=lambda move: move.rank)
        for move in others:
            rejected[move.report.node] = _behind(move, best)
        return Choice(
            node=best.report.node,
            reason=(
                f"{_size(machine.memory_bytes)} would take about {_seconds(best.seconds)} at "
                f"{best.how}; {_size(best.report.free_memory_bytes)} are free there"
            ),
            rejected=dict(sorted(rejected.items())),
        )

    def _objection(self, machine: MachineSpec, report: NodeReport) -> str:
        if machine.driver not in report.drivers:
            has = ", ".join(sorted(report.drivers)) or "none"
            return f"has no machine driver {machine.driver!r} (it has: {has})"
        free, reserve = report.free_memory_bytes, self._settings.reserve_bytes
        if free < machine.memory_bytes + reserve:
            need = _size(machine.memory_bytes)
            return (
                f"{_size(free)} of memory are free; the machine needs {need} "
                f"and {_size(reserve)} must stay free"
            )
        if not (math.isfinite(report.round_trip_ms) and report.round_trip_ms >= 0):
            return f"reports a round trip of {report.round_trip_ms} ms, which cannot be"
        return ""

    def _rate(self, report: NodeReport) -> tuple[float, str]:
        measured = report.rate_bytes_per_s
        if measured is not None and math.isfinite(measured) and measured >= 1:
            return measured, f"{_rate_text(measured)} as measured"
        assumed = float(self._settings.assumed_rate_max_bytes_per_s)
        round_trip_s = report.round_trip_ms / 1000
        if round_trip_s > 0:
            assumed = min(assumed, self._settings.assumed_window_bytes / round_trip_s)
        return assumed, f"{_rate_text(assumed)} as assumed from {report.round_trip_ms:g} ms"

    def _refused(self, machine: MachineSpec, rejected: dict[str, str]) -> Refused:
        if not rejected:
            return Refused(
                f"there is no node to move {machine.name!r} to",
                hint="add a peer under [peers] and see that its node runs",
                rejected={},
            )
        reasons = "; ".join(f"{node}: {reason}" for node, reason in sorted(rejected.items()))
        return Refused(
            f"no node can take {machine.name!r}: {reasons}",
            hint="free memory on a node, lower placement.fit.reserve_bytes, or install the driver",
            rejected=rejected,
        )


def _behind(move: _Move, best: _Move) -> str:
    slower = f"would take about {_seconds(move.seconds)} at {move.how}"
    if move.rank[0] != best.rank[0]:
        return f"{slower}; {best.report.node} takes {_seconds(best.seconds)}"
    free, most = move.report.free_memory_bytes, best.report.free_memory_bytes
    if free != most:
        return f"as near as {best.report.node}, but {_size(free)} are free, not {_size(most)}"
    return f"as good as {best.report.node}, whose name sorts first"


def _size(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"


def _rate_text(rate: float) -> str:
    return f"{rate / 1e6:,.1f} MB/s"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s"
