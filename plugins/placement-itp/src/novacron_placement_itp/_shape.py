"""A plan and an evacuation as JSON: what the operation shows and the command line draws."""

from __future__ import annotations

import math
from typing import Any

from novacron_placement_itp._evacuation import Evacuation, Status
from novacron_placement_itp._model import Plan, Problem

Json = dict[str, Any]


def plan_json(problem: Problem, plan: Plan) -> Json:
    """Seconds count from now; rates are bytes per second on the wire."""
    needs = {need.machine: need for need in problem.needs}
    return {
        "makespan_s": _s(plan.makespan_s),
        "makespan_low_s": _s(plan.makespan_low_s),
        "makespan_high_s": _s(plan.makespan_high_s),
        "bound_s": _s(plan.bound.seconds),
        "bound_why": plan.bound.why,
        "wire_bytes": round(sum(stint.wire_bytes for stint in plan.stints)),
        "at_once": dict(plan.lanes),
        "moves": [
            {
                "machine": stint.machine,
                "target": stint.target,
                "memory_bytes": needs[stint.machine].memory_bytes,
                "wire_bytes": round(stint.wire_bytes),
                "priority": needs[stint.machine].priority,
                "begin_s": _s(stint.begin_s),
                "copy_s": _s(stint.copy_s),
                "end_s": _s(stint.end_s),
                "end_low_s": _s(stint.end_low_s),
                "end_high_s": _s(stint.end_high_s),
                "rate_bytes_per_s": round(stint.rate) if math.isfinite(stint.rate) else None,
            }
            for stint in plan.stints
        ],
        "links": [
            {
                "name": link.name,
                "targets": sorted(link.targets),
                "rate_bytes_per_s": round(link.rate),
            }
            for link in problem.links
        ],
        "stranded": dict(plan.stranded),
    }


def _s(seconds: float) -> float | None:
    return round(seconds, 2) if math.isfinite(seconds) else None


def summary(core: Evacuation) -> Json:
    """Where each machine is in it."""
    cases = core.cases
    return {
        "moved": {n: c.target for n, c in cases.items() if c.status is Status.MOVED},
        "moving": {n: c.target for n, c in cases.items() if c.status is Status.MOVING},
        "waiting": sorted(n for n, c in cases.items() if c.status is Status.WAITING),
        "stayed": {n: c.reason for n, c in cases.items() if c.status is Status.STAYED},
        "plans": core.plans,
    }
