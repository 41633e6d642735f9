"""What a link will carry: an online forecaster of constant state per link, without I/O.

Three experts foresee each horizon. The first is a linear rule on logarithms: averages of several
memories, the extremes of the last samples and their unrest, weighed by a few fitted constants. The
second, a plain moving average, is blended in as far as it has served better on this very link. The
third says that the link stays on its plateau: of the recent samples, the one that would have served
best. It suits fixed lines, which sit at a cap and dip; the others suit radio. It is taken where
neighbouring samples are often equal and where it has served better than the others.

Intervals are calibrated on the link itself: the bounds are quantiles of the scaled error, moved
after each error so that the nominal part of the truths lies between them, whatever the link does
(online quantile tracking, the core of adaptive conformal inference: Gibbs and Candès, 2021;
Angelopoulos, Candès and Tibshirani, 2023).
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Mapping
from operator import mul
from typing import Final

import numpy as np
from attrs import define, field, frozen

HORIZONS: Final = (1, 5, 10)
# Below this rate in Mbit/s errors no longer count in full: a link that stands still has no ratio.
FLOOR: Final = 0.1
_SOFT: Final = 0.03  # Keeps logarithms of outages finite.
_MEMORIES: Final = (0.5, 0.35, 0.2, 0.1, 0.05, 0.02)
_BASE: Final = 2  # Of the memories, the one that the others are compared with.
_LONG: Final = 4
_UNREST: Final = 0.3
_WINDOW: Final = 32
_EXTREMES: Final = 10
_FORGET: Final = 0.99  # Of the evidence for an expert.
_STEADY_SLOPE: Final = 2.0  # The odds of the average: its lead, in accuracies, times this,
_STEADY_PRIOR: Final = -2.5  # and this before there is any.
_PLATEAU_AGES: Final = 12.0
_EQUAL: Final = 0.05  # Neighbours that differ by less are equal.
_EQUAL_SHARE: Final = 0.4  # So many equal neighbours make a plateau possible,
_EQUAL_FORGET: Final = 0.98
_STRONG: Final = 3.0  # and without them it must win by so many standard errors.
_SCALE_FORGET: Final = 0.95
_SCALE_LEAST: Final = 0.015625  # a power of two: the same in four bytes
_STEP: Final = 0.05
# Errors of neighbouring forecasts go together, the more the longer the horizon, so that bounds come
# back too early: to cover 90 %, aim higher.
_MISS: Final = {"near": 0.045, "far": 0.04}
_FAR: Final = 10
_BOUND_MOST: Final = 12.0
_CLIP: Final = 3.0
_SAMPLES_MOST: Final = 1_000_000
_SNAPSHOT_MOST: Final = 4096
_RATE_MOST: Final = 1e9  # Mbit/s; beyond is no measurement.
FEATURES: Final = 3 + len(_MEMORIES) - 1 + 2


@frozen
class HorizonFit:
    """Constants of one horizon, fitted on measured links; see docs/guide/prediction.md.

    Attributes:
        intercept, weights: Of the linear rule.
        scale: Typical size of its error's logarithm, before a link has shown its own.
        low, high: First bounds, in multiples of the scale.
    """

    intercept: float
    weights: tuple[float, ...]
    scale: float = 0.3
    low: float = -2.5
    high: float = 2.0


@frozen
class Forecast:
    """A rate in Mbit/s, with the bounds that hold the truth nine times of ten."""

    low: float
    point: float
    high: float


@define
class _Pending:
    """What was foreseen for a sample that has not come yet."""

    linear: float
    steady: float
    smooth: float
    plateau: float
    point: float
    scale: float

    def numbers(self) -> tuple[float, ...]:
        return (self.linear, self.steady, self.smooth, self.plateau, self.point, self.scale)


@define
class _Horizon:
    steps: int
    fit: HorizonFit
    steady_lead: float = 0.0
    lead: float = 0.0
    variance: float = 0.0
    scale: float = 0.0
    low: float = 0.0
    high: float = 0.0
    pending: deque[_Pending] = field(factory=deque)

    def learn(self, actual: float) -> None:
        """Compare the sample with what was foreseen for it."""
        foreseen = self.pending.popleft()
        self.steady_lead = self.steady_lead * _FORGET + (
            merit(foreseen.steady, actual) - merit(foreseen.linear, actual)
        )
        gain = merit(foreseen.plateau, actual) - merit(foreseen.smooth, actual)
        self.lead = self.lead * _FORGET + gain
        self.variance = self.variance * _FORGET + gain * gain
        error = _log(actual) - _log(foreseen.point)
        scaled = error / foreseen.scale
        miss = _MISS["far" if self.steps >= _FAR else "near"]
        # Each bound gives way by much where it was crossed and comes back by little: in the mean
        # it is crossed as often as it should.
        self.low += _STEP * (miss - (scaled < self.low)) * _width(self.low)
        self.high += _STEP * ((scaled > self.high) - miss) * _width(self.high)
        self.low = min(max(self.low, -_BOUND_MOST), 0.0)
        self.high = max(min(self.high, _BOUND_MOST), 0.0)
        self.scale = max(
            _SCALE_LEAST, self.scale * _SCALE_FORGET + abs(error) * (1 - _SCALE_FORGET)
        )


def _width(bound: float) -> float:
    return 1.0 + abs(bound)


def merit(foreseen: float, actual: float) -> float:
    """How well a forecast served: 1 where it was right, 0 where it was off by the whole truth."""
    return 1.0 - min(abs(foreseen - actual) / max(actual, FLOOR), 1.0)


def _log(rate: float) -> float:
    return math.log(rate + _SOFT)


def _clip(value: float) -> float:
    return min(max(value, -_CLIP), _CLIP)


_AGES: Final = np.exp(-np.arange(_WINDOW - 1, -1, -1) / _PLATEAU_AGES)


class LinkForecaster:
    """Foresees one link from samples that come at a steady pace. Give it one rate per interval.

    An update costs a constant time and the state never grows: see `state_bytes`.
    """

    def __init__(self, fits: Mapping[int, HorizonFit] | None = None) -> None:
        if fits is None:
            from novacron_transport_pba._fitted import FITS

            fits = FITS
        self.samples = 0
        self._sum = 0.0
        self._means = [0.0] * len(_MEMORIES)
        self._log_mean = 0.0
        self._log_square = 0.0
        self._equal = 0.0
        self._equal_weight = 0.0
        self._window: deque[float] = deque(maxlen=_WINDOW)
        self._horizons = {
            steps: _Horizon(steps, fit, scale=fit.scale, low=fit.low, high=fit.high)
            for steps, fit in sorted(fits.items())
        }
        self._now: dict[int, _Pending] = {}

    def update(self, mbps: float) -> None:
        """Take the next sample. Raises: ValueError for what is no rate."""
        if not (math.isfinite(mbps) and 0 <= mbps <= _RATE_MOST):
            raise ValueError(f"{mbps!r} is no rate in Mbit/s")
        for horizon in self._horizons.values():
            if len(horizon.pending) >= horizon.steps:
                horizon.learn(mbps)
        if self._window:
            before = self._window[-1]
            self._equal = self._equal * _EQUAL_FORGET + (
                abs(mbps - before) < _EQUAL * max(mbps, FLOOR)
            )
            self._equal_weight = self._equal_weight * _EQUAL_FORGET + 1
        if self.samples >= _SAMPLES_MOST:
            # The mean of all goes on as one of the last so many.
            self._sum *= 1 - 1 / self.samples
            self.samples -= 1
        self.samples += 1
        self._sum += mbps
        for place, memory in enumerate(_MEMORIES):
            self._means[place] += memory * (mbps - self._means[place])
        log = math.log(mbps + FLOOR)
        self._log_mean += _UNREST * (log - self._log_mean)
        self._log_square += _UNREST * (log * log - self._log_square)
        self._window.append(mbps)
        self._foresee()

    def features(self) -> tuple[float, list[float]]:
        """The rate that forecasts are relative to, and what the linear rule weighs."""
        # Averages begin at zero; this takes that out.
        means = [
            mean / (1 - (1 - memory) ** self.samples)
            for mean, memory in zip(self._means, _MEMORIES, strict=True)
        ]
        base = means[_BASE]
        ground = math.log(base + FLOOR)
        shown = 1 - (1 - _UNREST) ** self.samples
        log_mean = self._log_mean / shown
        unrest = math.sqrt(max(self._log_square / shown - log_mean * log_mean, 0.0))
        recent = list(self._window)[-_EXTREMES:]
        levels = [recent[-1], *means[:_BASE], *means[_BASE + 1 :], self._sum / self.samples]
        levels += [min(recent), max(recent)]
        found = [_clip(math.log(level + FLOOR) - ground) for level in levels]
        return base, [*found, _clip(math.log(unrest + 0.02))]

    def _foresee(self) -> None:
        base, features = self.features()
        plateau = self._plateau()
        plain = self._equal_weight > 0 and self._equal > _EQUAL_SHARE * self._equal_weight
        for steps, horizon in self._horizons.items():
            fit = horizon.fit
            shift = fit.intercept + sum(map(mul, fit.weights, features))
            linear = max(0.0, (base + _SOFT) * math.exp(_clip(shift)) - _SOFT)
            odds = min(max(_STEADY_SLOPE * horizon.steady_lead + _STEADY_PRIOR, -30.0), 30.0)
            blend = 1 / (1 + math.exp(-odds))
            smooth = linear + blend * (base - linear)
            needed = 0.0 if plain else 1.0 + _STRONG * math.sqrt(horizon.variance)
            point = plateau if horizon.lead > needed else smooth
            foreseen = _Pending(linear, base, smooth, plateau, point, horizon.scale)
            horizon.pending.append(foreseen)
            self._now[steps] = foreseen

    def _plateau(self) -> float:
        """Of the recent samples the one that would have served best for the recent samples."""
        seen = np.array(self._window)
        weights = _AGES[_WINDOW - len(seen) :] / np.maximum(seen, FLOOR)
        misses = np.minimum(np.abs(seen[:, None] - seen[None, :]), np.maximum(seen, FLOOR)[None, :])
        return float(seen[int((misses @ weights).argmin())])

    def mean(self) -> float:
        """The mean of the last twenty samples or so, in Mbit/s: what a long transfer goes by."""
        if not self.samples:
            raise ValueError("no sample has come yet")
        return self._means[_LONG] / (1 - (1 - _MEMORIES[_LONG]) ** self.samples)

    @property
    def state_bytes(self) -> int:
        """What `snapshot` takes at this moment."""
        return len(self.snapshot())

    def snapshot(self) -> bytes:
        """The whole state, in floats of four bytes."""
        numbers = [self.samples, self._sum, *self._means, self._log_mean, self._log_square]
        numbers += [self._equal, self._equal_weight, len(self._window), *self._window]
        for horizon in self._horizons.values():
            numbers += [horizon.steady_lead, horizon.lead, horizon.variance, horizon.scale]
            numbers += [horizon.low, horizon.high, len(horizon.pending)]
            for foreseen in horizon.pending:
                numbers += foreseen.numbers()
        return struct.pack(f"<{len(numbers)}f", *numbers)

    @classmethod
    def restored(
        cls, snapshot: bytes, fits: Mapping[int, HorizonFit] | None = None
    ) -> LinkForecaster:
        """A forecaster as it was. Raises: ValueError for what is no snapshot."""
        made = cls(fits)
        if len(snapshot) % 4 or len(snapshot) > _SNAPSHOT_MOST:
            raise ValueError("this is no snapshot of a forecaster: its length cannot be")
        numbers = iter(struct.unpack(f"<{len(snapshot) // 4}f", snapshot))

        def take(least: float = -_RATE_MOST, most: float = _RATE_MOST) -> float:
            number = next(numbers, math.nan)
            if not least <= number <= most:
                raise ValueError(f"this is no snapshot of a forecaster: {number} cannot be")
            return number

        made.samples = int(take(0, _SAMPLES_MOST))
        made._sum = take(0, _RATE_MOST * _SAMPLES_MOST)
        made._means = [take(0) for _ in _MEMORIES]
        made._log_mean, made._log_square = take(), take(0)
        made._equal, made._equal_weight = take(0), take(0)
        made._window.extend(take(0) for _ in range(int(take(0, _WINDOW))))
        if bool(made.samples) != bool(made._window):
            raise ValueError("this is no snapshot of a forecaster: it has lost its samples")
        for horizon in made._horizons.values():
            horizon.steady_lead, horizon.lead, horizon.variance = take(), take(), take(0)
            horizon.scale = take(_SCALE_LEAST)
            horizon.low, horizon.high = take(-_BOUND_MOST, 0), take(0, _BOUND_MOST)
            for _ in range(int(take(0, horizon.steps))):
                linear, steady, smooth, plateau, point = (take(0) for _ in range(5))
                scale = take(_SCALE_LEAST)
                horizon.pending.append(_Pending(linear, steady, smooth, plateau, point, scale))
            if horizon.pending:
                made._now[horizon.steps] = horizon.pending[-1]
        if next(numbers, None) is not None or bool(made.samples) != bool(made._now):
            raise ValueError("this is no snapshot of a forecaster: its parts do not fit")
        return made

    def forecast(self, steps: int) -> Forecast:
        """What the link will carry so many samples from now.

        Horizons between those that were fitted are interpolated, longer ones are as the longest.
        Raises: ValueError before the first sample.
        """
        if not self._now:
            raise ValueError("no sample has come yet")
        known = list(self._horizons)
        below = max((one for one in known if one <= steps), default=known[0])
        above = min((one for one in known if one >= steps), default=known[-1])
        first, last = self._at(below), self._at(above)
        part = 0.0 if above == below else (steps - below) / (above - below)
        return Forecast(
            first.low + part * (last.low - first.low),
            first.point + part * (last.point - first.point),
            first.high + part * (last.high - first.high),
        )

    def _at(self, steps: int) -> Forecast:
        horizon, foreseen = self._horizons[steps], self._now[steps]
        ground = _log(foreseen.point)

        def bound(place: float) -> float:
            return max(0.0, math.exp(min(ground + place * foreseen.scale, 30.0)) - _SOFT)

        return Forecast(bound(horizon.low), foreseen.point, bound(horizon.high))
