"""Copies that share links, as fluids: who gets how much, and what happens until when.

The planner predicts with it and the simulation runs on it, each with figures of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Final

from attrs import define

# Less than this is nothing: of bytes, and of seconds.
_BYTE: Final = 1e-3
_MOMENT: Final = 1e-9


class Stage(IntEnum):
    """Of one move."""

    PREPARE = 0
    COPY = 1
    FINISH = 2
    DONE = 3


@define
class Flow:
    """One move.

    Attributes:
        remaining_bytes: To be sent now; the guest adds to it, up to ``wire_bytes``.
        rate_max: The most that it can send.
        prepare_s, finish_s: Left of the stages that send nothing.
        sent_bytes: So far.
    """

    machine: str
    target: str
    wire_bytes: float
    remaining_bytes: float
    dirty_bytes_per_s: float = 0.0
    rate_max: float = math.inf
    prepare_s: float = 0.0
    finish_s: float = 0.0
    sent_bytes: float = 0.0

    @property
    def stage(self) -> Stage:
        if self.prepare_s > _MOMENT:
            return Stage.PREPARE
        if self.remaining_bytes > _BYTE:
            return Stage.COPY
        return Stage.FINISH if self.finish_s > _MOMENT else Stage.DONE


Way = Mapping[str, Sequence[int]]
"""The links on the way to each target, by their numbers."""


def shares(flows: Sequence[Flow], way: Way, rates: Sequence[float], *, strict: bool) -> list[float]:
    """What each flow sends, in bytes per second.

    Args:
        flows: In the order in which they began.
        way: Links by target.
        rates: Of each link.
        strict: The first takes what it can and leaves the rest to the next; else they share each
            link evenly, and nobody leaves unused what another could use (max-min).
    """
    free = list(rates)
    given = [0.0] * len(flows)
    copying = [n for n, flow in enumerate(flows) if flow.stage is Stage.COPY]
    if strict:
        for n in copying:
            flow = flows[n]
            links = way[flow.target]
            given[n] = max(min((free[link] for link in links), default=math.inf), 0.0)
            given[n] = min(given[n], flow.rate_max)
            for link in links:
                free[link] -= given[n]
        return given
    while copying:
        # All grow alike until a link is full or one needs no more.
        users = [sum(link in way[flows[n].target] for n in copying) for link in range(len(free))]
        step = min(
            min((free[k] / users[k] for k in range(len(free)) if users[k]), default=math.inf),
            min(flows[n].rate_max - given[n] for n in copying),
        )
        step = max(step, 0.0)
        for n in copying:
            given[n] += step
            for link in way[flows[n].target]:
                free[link] -= step
        full = {k for k in range(len(free)) if users[k] and free[k] <= rates[k] * 1e-12}
        copying = [
            n
            for n in copying
            if given[n] < flows[n].rate_max * (1 - 1e-12)
            and not full.intersection(way[flows[n].target])
        ]
        if math.isinf(step):
            break
    return given


def advance(flows: Sequence[Flow], given: Sequence[float], seconds: float) -> float:
    """Let time pass, at most until one of the flows enters another stage; how much passed."""
    for flow, rate in zip(flows, given, strict=True):
        stage = flow.stage
        if stage is Stage.PREPARE:
            seconds = min(seconds, flow.prepare_s)
        elif stage is Stage.FINISH:
            seconds = min(seconds, flow.finish_s)
        elif stage is Stage.COPY and math.isinf(rate):
            seconds = 0.0
        elif stage is Stage.COPY and rate > flow.dirty_bytes_per_s:
            seconds = min(seconds, flow.remaining_bytes / (rate - flow.dirty_bytes_per_s))
    for flow, rate in zip(flows, given, strict=True):
        stage = flow.stage
        if stage is Stage.PREPARE:
            flow.prepare_s = max(flow.prepare_s - seconds, 0.0)
        elif stage is Stage.FINISH:
            flow.finish_s = max(flow.finish_s - seconds, 0.0)
        elif stage is Stage.COPY and math.isinf(rate):
            flow.sent_bytes += flow.remaining_bytes
            flow.remaining_bytes = 0.0
        elif stage is Stage.COPY:
            left = flow.remaining_bytes + (flow.dirty_bytes_per_s - rate) * seconds
            flow.sent_bytes += rate * seconds
            # What was not sent yet is no dirtier for being written again.
            flow.remaining_bytes = min(max(left, 0.0), flow.wire_bytes)
            if flow.remaining_bytes <= _BYTE:
                flow.remaining_bytes = 0.0
    return seconds


def stalled(flows: Sequence[Flow], given: Sequence[float]) -> bool:
    """Whether nothing will ever change by itself: all that are left write faster than they send."""
    return all(
        flow.stage is Stage.DONE or (flow.stage is Stage.COPY and rate <= flow.dirty_bytes_per_s)
        for flow, rate in zip(flows, given, strict=True)
    )


def run(
    begin: Callable[[float, Sequence[Flow]], Sequence[Flow]],
    way: Way,
    rates: Sequence[float],
    *,
    strict: bool,
    under_way: Sequence[Flow] = (),
    watch: Callable[[float, Flow, Stage], None] = lambda at_s, flow, stage: None,
) -> bool:
    """Run until nothing is under way and nothing more is begun; False if it stalls before.

    Args:
        begin: Gives the moves to begin now, asked whenever something has changed.
        watch: Told when a flow enters a stage; `Stage.COPY` when its first bytes flow.
    """
    now = 0.0
    flows = list(under_way)
    stages: dict[str, Stage] = {}
    while True:
        flows += begin(now, flows)
        for flow in flows:
            # Who is ready and has no share yet is held, not copied: that is told below.
            if flow.stage is not Stage.COPY and stages.get(flow.machine) is not flow.stage:
                stages[flow.machine] = flow.stage
                watch(now, flow, flow.stage)
        ended = any(flow.stage is Stage.DONE for flow in flows)
        flows = [flow for flow in flows if flow.stage is not Stage.DONE]
        if ended:
            continue
        if not flows:
            return True
        given = shares(flows, way, rates, strict=strict)
        if stalled(flows, given):
            return False
        for flow, rate in zip(flows, given, strict=True):
            if rate > 0 and stages.get(flow.machine) is not Stage.COPY:
                stages[flow.machine] = Stage.COPY
                watch(now, flow, Stage.COPY)
        now += advance(flows, given, math.inf)
