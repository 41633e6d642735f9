"""How good forecasts of moves were, and the bounds that follow from it.

A forecast's error is the logarithm of truth over forecast: 0 is right, 0.1 a tenth too low. The
bounds of the next forecast are quantiles of the errors so far (split conformal prediction), with a
few assumed errors mixed in until there are enough of one's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

Interval = tuple[float, float, float]

CONFIDENCE: Final = 0.9
ERRORS_MAX: Final = 60
_ERROR_MOST: Final = 5.0
_ENOUGH: Final = 24
_ASSUMED: Final = 8
_CENTRE_AFTER: Final = 5
# What forecasts are about, and the error that is assumed of nine in ten before any was seen: what
# the bench's first moves over emulated links showed, with room.
KINDS: Final[Mapping[str, float]] = {
    "plan.seconds": 1.0,
    "plan.bytes": 0.8,
    "plan.pause": 1.0,
    "eta.0": 0.6,
    "eta.25": 0.4,
    "eta.50": 0.35,
    "eta.75": 0.5,
}


def error_of(foreseen: float, actual: float) -> float | None:
    """None where either is not positive: there is nothing to compare."""
    if not (foreseen > 0 and actual > 0 and math.isfinite(foreseen) and math.isfinite(actual)):
        return None
    return max(-_ERROR_MOST, min(math.log(actual / foreseen), _ERROR_MOST))


def bounds(kind: str, errors: Sequence[float]) -> tuple[float, float, float]:
    """Factors for the low bound, the middle and the high bound of a forecast."""
    spread = KINDS[kind]
    found = list(errors[-ERRORS_MAX:])
    centre = 0.0
    if len(found) >= _CENTRE_AFTER:
        centre = median(found) * len(found) / (len(found) + _CENTRE_AFTER)
    assumed = max(0, round(_ASSUMED * (1 - len(found) / _ENOUGH)))
    for place in range(assumed):
        found.append(spread * (2 * (place + 0.5) / assumed - 1))
    found.sort()
    tail = (1 - CONFIDENCE) / 2
    # The rank of split conformal prediction: with few errors it is the outermost one.
    place = max(0, math.floor(tail * (len(found) + 1)) - 1)
    low, high = (found[place], found[-1 - place]) if found else (-spread, spread)
    return math.exp(min(low, centre)), math.exp(centre), math.exp(max(high, centre))


def around(kind: str, errors: Sequence[float], middle: float) -> Interval:
    """A forecast with its bounds."""
    low, centre, high = bounds(kind, errors)
    return (middle * low, middle * centre, middle * high)


def covered(interval: Interval | None, actual: float) -> bool | None:
    """Whether the truth was between the bounds; None if nothing was foreseen."""
    return None if interval is None else interval[0] <= actual <= interval[2]


def eta_kind(done: float) -> str:
    """Which errors a forecast of the time left is measured by: its quarter of the move."""
    return f"eta.{min(max(int(done * 4), 0), 3) * 25}"


__all__ = [
    "CONFIDENCE", "ERRORS_MAX", "KINDS", "Interval", "around", "bounds", "covered",
    "error_of", "eta_kind",
]  # fmt: skip
