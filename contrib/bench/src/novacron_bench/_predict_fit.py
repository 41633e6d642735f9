"""The constants of the linear rule, fitted on measured links.

The loss is the one that forecasts are judged by: the error as a part of the truth, capped at one,
and a little of the squared error, so that rare large errors are not for free. It is not convex, but
smooth enough for plain gradient steps from the moving average, where all begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from attrs import field, frozen
from novacron_transport_pba import FEATURES, FLOOR, HORIZONS, HorizonFit, LinkForecaster

from novacron_bench._predict_data import Trace

FIRST: Final = 10
_SOFT: Final = 0.03
# A set counts once, however long its traces are; the one with ten times the traces six times.
_SET_WEIGHT: Final[Mapping[str, float]] = {"norway_hsdpa": 6.0}
_STEPS: Final = 200
_RATE: Final = 0.04
_KEEP_SMALL: Final = 0.03
_SQUARED: Final = 0.1
_WIDER: Final = 1.1  # First bounds: a link that was never seen may be worse than those that were.


@frozen
class Seen:
    """A trace, and what the forecaster derived from it at every sample."""

    trace: Trace
    base: np.ndarray = field(eq=False)
    features: np.ndarray = field(eq=False)


def look(traces: Sequence[Trace]) -> list[Seen]:
    """Derive the features, which need no fitted constants."""
    blank = {steps: HorizonFit(0.0, (0.0,) * FEATURES) for steps in HORIZONS}
    seen = []
    for trace in traces:
        forecaster = LinkForecaster(blank)
        bases, features = [], []
        for rate in trace.mbps:
            forecaster.update(float(rate))
            base, found = forecaster.features()
            bases.append(base)
            features.append(found)
        seen.append(Seen(trace, np.array(bases), np.array(features)))
    return seen


def fit(seen: Sequence[Seen]) -> dict[int, HorizonFit]:
    """Constants for every horizon from these traces."""
    return {steps: _fit(seen, steps) for steps in HORIZONS}


def _fit(seen: Sequence[Seen], steps: int) -> HorizonFit:
    features, base, actual, mean, weight = _rows(seen, steps)
    middle, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    inputs = np.column_stack([(features - middle) / spread, np.ones(len(features))])
    small = np.append(np.full(features.shape[1], _KEEP_SMALL), 0.0)
    least = np.maximum(actual, FLOOR)
    rule = np.zeros(inputs.shape[1])
    pace, size = np.zeros_like(rule), np.zeros_like(rule)
    foreseen = base
    for step in range(_STEPS):
        foreseen = (base + _SOFT) * np.exp(np.clip(inputs @ rule, -3, 3)) - _SOFT
        error = (foreseen - actual) / least
        slope = np.tanh(error / 0.05) * (np.abs(error) < 1) / least
        slope += _SQUARED * 2 * (foreseen - actual) / mean**2
        gradient = inputs.T @ (weight * slope * (foreseen + _SOFT)) + small * rule
        pace = 0.9 * pace + 0.1 * gradient
        size = 0.99 * size + 0.01 * gradient**2
        forward = pace / (1 - 0.9 ** (step + 1))
        rule -= (
            _RATE
            * (1 - step / _STEPS)
            * forward
            / (np.sqrt(size / (1 - 0.99 ** (step + 1))) + 1e-6)
        )
    weights = rule[:-1] / spread
    error = np.log(actual + _SOFT) - np.log(np.maximum(foreseen, 0) + _SOFT)
    scale = float(weight @ np.abs(error))
    order = error.argsort()
    parts = np.cumsum(weight[order])
    low, high = (
        float(error[order][np.searchsorted(parts, part)]) / scale * _WIDER for part in (0.05, 0.95)
    )
    return HorizonFit(
        float(rule[-1] - weights @ middle), tuple(map(float, weights)), scale, low, high
    )


def _rows(seen: Sequence[Seen], steps: int) -> tuple[np.ndarray, ...]:
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    counts: dict[str, int] = {}
    for one in seen:
        counts[one.trace.set] = counts.get(one.trace.set, 0) + 1
    for one in seen:
        rates = one.trace.mbps
        at = np.arange(FIRST - 1, len(rates) - steps)
        if not len(at):
            continue
        actual = rates[at + steps]
        share = _SET_WEIGHT.get(one.trace.set, 1.0) / counts[one.trace.set] / len(at)
        values = (one.features[at], one.base[at], actual)
        for column, value in zip(columns, values, strict=False):
            column.append(value)
        columns[3].append(np.full(len(at), max(float(actual.mean()), FLOOR)))
        columns[4].append(np.full(len(at), share))
    features, base, actual, mean, weight = map(np.concatenate, columns)
    return features, base, actual, mean, weight / weight.sum()
