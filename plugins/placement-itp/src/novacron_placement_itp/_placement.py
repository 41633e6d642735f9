"""The placement provider: where the move would end first, behind what is planned to go there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from attrs import frozen
from novacron import Choice, MachineSpec, NodeFacts, NodeReport, Refused

from novacron_placement_itp._settings import ItpSettings


@frozen(kw_only=True)
class Claim:
    """What is planned to go to a node: memory, and seconds until its link is free."""

    memory_bytes: int = 0
    busy_s: float = 0.0


class ItpPlacement:
    """Chooses by when the machine would run there. `planned` is what an evacuation under way has
    planned for each node; without one it is empty."""

    name: ClassVar[str] = "itp"
    Settings: ClassVar[type] = ItpSettings

    def __init__(self, settings: ItpSettings, node: NodeFacts) -> None:
        self._settings = settings
        self.planned: Mapping[str, Claim] = {}

    def choose(self, machine: MachineSpec, candidates: Sequence[NodeReport]) -> Choice:
        if len({report.node for report in candidates}) != len(candidates):
            raise ValueError("two of the candidates have the same name")
        rejected: dict[str, str] = {}
        ends: list[tuple[int, int, str, str]] = []
        for report in sorted(candidates, key=lambda candidate: candidate.node):
            claim = self.planned.get(report.node, Claim())
            if objection := self._objection(machine, report, claim):
                rejected[report.node] = objection
                continue
            rate, how = self._rate(report)
            end_s = claim.busy_s + self._settings.move_s + machine.memory_bytes / rate
            behind = f", behind {claim.busy_s:,.0f} s that are planned" if claim.busy_s else ""
            words = f"it would run there in about {end_s:,.1f} s at {how}{behind}"
            free = report.free_memory_bytes - claim.memory_bytes
            # Differences below a millisecond are noise of the measurement, not a reason.
            ends.append((round(end_s * 1000), -free, report.node, words))
        if not ends:
            raise _refused(machine, rejected)
        first, *others = sorted(ends)
        for _, _, node, words in others:
            rejected[node] = (
                f"{words}; {first[2]} is sooner, or has more memory free, or sorts first"
            )
        return Choice(node=first[2], reason=first[3], rejected=dict(sorted(rejected.items())))

    def _objection(self, machine: MachineSpec, report: NodeReport, claim: Claim) -> str:
        if machine.driver not in report.drivers:
            has = ", ".join(sorted(report.drivers)) or "none"
            return f"has no machine driver {machine.driver!r} (it has: {has})"
        free = report.free_memory_bytes - claim.memory_bytes
        if free < machine.memory_bytes + self._settings.reserve_bytes:
            planned = f" beside {claim.memory_bytes >> 20} MiB planned" if claim.busy_s else ""
            return (
                f"{max(free, 0) >> 20} MiB of memory are free{planned}; the machine needs "
                f"{machine.memory_bytes >> 20} MiB and {self._settings.reserve_bytes >> 20} must "
                "stay free"
            )
        return ""

    def _rate(self, report: NodeReport) -> tuple[float, str]:
        measured = report.rate_bytes_per_s
        if measured is not None and math.isfinite(measured) and measured >= 1:
            return measured, f"{measured / 1e6:,.1f} MB/s as measured"
        assumed = self._settings.rate_bytes_per_s
        return assumed, f"{assumed / 1e6:,.1f} MB/s as assumed"


def _refused(machine: MachineSpec, rejected: dict[str, str]) -> Refused:
    if not rejected:
        return Refused(
            f"there is no node to move {machine.name!r} to",
            hint="add a peer under [peers] and see that its node runs",
            rejected={},
        )
    reasons = "; ".join(f"{node}: {reason}" for node, reason in sorted(rejected.items()))
    return Refused(
        f"no node can take {machine.name!r}: {reasons}",
        hint="free memory on a node, lower placement.itp.reserve_bytes, or install the driver",
        rejected=rejected,
    )
