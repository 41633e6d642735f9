"""How well a move foresaw its own end: what it said of the time left, against what was left."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, Final

from attrs import define, field, frozen
from novacron import OperationEvent

MARKS: Final = ("25", "50", "75")


@frozen
class Told:
    """The time left as a move told it, with its bounds, all in seconds; ``at_s`` is when."""

    at_s: float
    left_s: float
    low_s: float
    high_s: float


@define
class EtaWatch:
    """Collects what the progress events of one move say."""

    told: list[Told] = field(factory=list)
    _began_s: float | None = None

    def see(self, event: OperationEvent) -> None:
        """Take an event of the operation, at the moment at which it came."""
        now, data = time.monotonic(), event.data
        if event.kind != "progress" or not data.get("done_bytes"):
            return
        if self._began_s is None:
            self._began_s = now
        left, low, high = (data.get(key) for key in ("eta_s", "eta_low_s", "eta_high_s"))
        if left is not None and low is not None and high is not None:
            self.told.append(Told(now, float(left), float(low), float(high)))

    def figures(self, ended_s: float) -> dict[str, dict[str, float | bool]]:
        """What was foreseen when a quarter, half and three quarters of the copy's time had passed.

        The copy's time runs from the first byte that was read to the end of the move. ``error`` is
        the distance from the truth, as a part of the truth.
        """
        if self._began_s is None:
            return {}
        span = ended_s - self._began_s
        found: dict[str, dict[str, float | bool]] = {}
        for mark in MARKS:
            at_s = self._began_s + span * int(mark) / 100
            before = [one for one in self.told if one.at_s <= at_s]
            if not before:
                continue
            one = before[-1]
            left = ended_s - one.at_s
            found[mark] = {
                "foreseen_s": one.left_s,
                "left_s": round(left, 2),
                "error": round(abs(one.left_s - left) / left, 3),
                "covered": one.low_s <= left <= one.high_s,
            }
        return found


def eta_errors(figures: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The errors in the figures of several runs, by mark."""
    found: dict[str, list[float]] = {mark: [] for mark in MARKS}
    for one in figures:
        eta = one.get("eta")
        if not isinstance(eta, Mapping):
            continue
        for mark in MARKS:
            error = eta.get(mark, {}).get("error")
            if isinstance(error, (int, float)) and math.isfinite(error):
                found[mark].append(float(error))
    return found


def eta_text(errors: Mapping[str, list[float]]) -> str:
    """Median errors at a quarter, half and three quarters, such as ``12/8/10 %``."""
    if not any(errors.values()):
        return ""
    parts = [f"{median(errors[mark]) * 100:.0f}" if errors[mark] else "?" for mark in MARKS]
    return f"{'/'.join(parts)} %"
