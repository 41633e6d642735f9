"""What a pair of places will carry that was never measured: as others do that are like it.

The forecast is a quantile of what was measured between similar pairs, weighed by likeness: nearly
the same round trip, the same cloud and tier at either end, and best of all the same end itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from attrs import field, frozen, validators

MEASUREMENTS_MAX: Final = 50_000
_NEAR: Final = 0.1  # A round trip longer by a tenth is one step away,
_SOFT_MS: Final = 5.0  # and so is a difference of half a millisecond next door.
_FAR_SHARE: Final = (
    0.02  # Pairs further off count little, but they count where there are no others.
)
_SAME_END: Final = 5.0
_OTHER_TIER: Final = 0.3
_OTHER_CLOUD: Final = 1e-4
# A forecast that is too high costs more than one that is as much too low, in parts of the truth.
QUANTILE: Final = 0.45
_DRIFT_SHARE: Final = 0.6


@frozen
class End:
    """One end of a pair: a region, the cloud or provider that it belongs to, its network tier."""

    region: str
    cloud: str = ""
    tier: str = ""


@frozen(kw_only=True)
class Measured:
    """A throughput that was measured, in any unit that is the same for all.

    Attributes:
        round_trip_ms: Of the pair; None if unknown.
        weight: How much it counts: 1, or less for what is old.
    """

    source: End
    target: End
    round_trip_ms: float | None
    rate: float = field(validator=validators.gt(0))
    weight: float = field(default=1.0, validator=[validators.gt(0), validators.le(1)])


class PairModel:
    """Throughput by likeness. Fitting is storing: a measurement can be added at any time."""

    def __init__(self, measured: Iterable[Measured] = ()) -> None:
        self._measured: list[Measured] = []
        self._columns: _Columns | None = None
        for one in measured:
            self.add(one)

    def __len__(self) -> int:
        return len(self._measured)

    def add(self, measured: Measured) -> None:
        """Learn a measurement; beyond `MEASUREMENTS_MAX` the oldest is forgotten."""
        self._measured.append(measured)
        if len(self._measured) > MEASUREMENTS_MAX:
            del self._measured[0]
        self._columns = None

    def predict(
        self,
        source: End,
        target: End,
        round_trip_ms: float | None,
        quantiles: Sequence[float] = (QUANTILE,),
    ) -> list[float] | None:
        """Quantiles of what the pair will carry; None if nothing was ever measured."""
        if not self._measured:
            return None
        if self._columns is None:
            self._columns = _Columns(self._measured)
        known = self._columns
        weights = known.weight * known.near(_place(round_trip_ms))
        for name, end in (("source", source), ("target", target)):
            regions, clouds, tiers = known.ends[name]
            weights = weights * np.where(regions == known.number(end.region), _SAME_END, 1.0)
            weights *= np.where(clouds == known.number(end.cloud), 1.0, _OTHER_CLOUD)
            weights *= np.where(tiers == known.number(end.tier), 1.0, _OTHER_TIER)
        sums = np.cumsum(weights[known.order])
        total = sums[-1]
        if not total > 0:
            return None
        places = np.searchsorted(sums, np.asarray(quantiles) * total)
        return [float(known.rates[min(int(place), len(sums) - 1)]) for place in places]


def later(last: float, drift: float, level: float) -> float:
    """A pair's throughput some time after it was measured.

    Args:
        last: What was measured on it.
        drift: By which factor pairs like it have changed since (`PairModel` of such factors).
        level: What pairs like it carry now (`PairModel` of rates).
    """
    least = 1e-9
    return math.exp(
        _DRIFT_SHARE * math.log(max(last * drift, least))
        + (1 - _DRIFT_SHARE) * math.log(max(level, least))
    )


def _place(round_trip_ms: float | None) -> float:
    return math.nan if round_trip_ms is None else math.log(max(round_trip_ms, 0.0) + _SOFT_MS)


class _Columns:
    """The measurements by column, for one sweep of numpy per question."""

    def __init__(self, measured: Sequence[Measured]) -> None:
        self._numbers: dict[str, int] = {}
        rates = np.array([one.rate for one in measured])
        self.order = rates.argsort(kind="stable")
        self.rates = rates[self.order]
        self.weight = np.array([one.weight for one in measured])
        self._places = np.array([_place(one.round_trip_ms) for one in measured])
        self.ends = {
            "source": self._end([one.source for one in measured]),
            "target": self._end([one.target for one in measured]),
        }

    def _end(self, ends: Sequence[End]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        def column(names: Iterable[str]) -> np.ndarray:
            numbers = self._numbers
            return np.array([numbers.setdefault(name, len(numbers)) for name in names])

        return (
            column(end.region for end in ends),
            column(end.cloud for end in ends),
            column(end.tier for end in ends),
        )

    def number(self, name: str) -> int:
        return self._numbers.get(name, -1)

    def near(self, place: float) -> np.ndarray:
        """Likeness by round trip; where either is unknown, all are equally far."""
        steps = np.square((self._places - place) / _NEAR)
        likeness = np.exp(-steps / 2) + _FAR_SHARE * np.exp(-steps / 32)
        return np.where(np.isnan(likeness), _FAR_SHARE, likeness)
