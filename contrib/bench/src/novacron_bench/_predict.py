"""How well links are foreseen, by the protocol of the measured data, beside plain baselines.

Every figure is cross-validated: what is fitted is fitted on the other drives, trips and units.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
from attrs import frozen
from novacron_transport_pba import (
    FLOOR,
    HORIZONS,
    QUANTILE,
    HorizonFit,
    LinkForecaster,
    Measured,
    PairModel,
    later,
)

from novacron_bench._predict_data import (
    FOLDS,
    GRID_FOLDS,
    SETS,
    GridRow,
    Trace,
    read_grid,
    read_traces,
)
from novacron_bench._predict_fit import FIRST, fit, look

OURS: Final = "novacron"
_LAGS: Final = 10
_LEAST: Final = 10
UNSEEN: Final = "unseen pair"
_CAMPAIGN: Final = "2022-01-29"
_EARLIER: Final = {"2022-01-17": 0.3, "2022-01-24": 0.3, _CAMPAIGN: 1.0}
_LATER: Final = (
    ("five days later", "2022-01-24", _CAMPAIGN),
    ("ten months later", _CAMPAIGN, "2022-11-28"),
)
# Quoted from the table that comes with the data; all others are computed here.
GBDT: Final = {
    ("mahimahi_cellular", 1): (0.715, 0.34, 0.33),
    ("mahimahi_cellular", 5): (0.589, 0.68, 0.56),
    ("mahimahi_cellular", 10): (0.539, 0.83, 0.65),
    ("norway_hsdpa", 1): (0.826, 0.18, 0.21),
    ("norway_hsdpa", 5): (0.725, 0.32, 0.31),
    ("norway_hsdpa", 10): (0.697, 0.37, 0.34),
    ("fcc_broadband", 1): (0.862, 0.20, 0.24),
    ("fcc_broadband", 5): (0.824, 0.27, 0.31),
    ("fcc_broadband", 10): (0.812, 0.31, 0.34),
    (UNSEEN, 0): (0.877, 0.242, 0.237),
}


@frozen(kw_only=True)
class Line:
    """One method on one set at one horizon (0: the grid, which has none).

    Attributes:
        accuracy, mape, nrmse: As the data's README defines them.
        covered: The part of truths between the bounds that should hold 90 %; None without bounds.
        width: Mean distance of the bounds as a part of the set's mean.
    """

    set: str
    steps: int
    method: str
    accuracy: float
    mape: float
    nrmse: float
    covered: float | None = None
    width: float | None = None


@frozen(kw_only=True)
class Report:
    """All lines; and what the forecaster of a link costs."""

    lines: tuple[Line, ...]
    state_bytes: int
    update_us: float
    samples: int

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(self)

    def best(self, name: str, steps: int) -> Line:
        """The baseline of the highest accuracy."""
        return max(
            (
                line
                for line in self.lines
                if (line.set, line.steps) == (name, steps) and not line.method.startswith(OURS)
            ),
            key=lambda line: line.accuracy,
        )


def scores(foreseen: np.ndarray, actual: np.ndarray) -> tuple[float, float, float]:
    """Accuracy, MAPE and NRMSE."""
    error = np.abs(foreseen - actual)
    accuracy = float(np.mean(1 - np.minimum(error / np.maximum(actual, FLOOR), 1)))
    alive = actual >= FLOOR
    mape = float(np.mean(error[alive] / actual[alive])) if alive.any() else float("nan")
    return accuracy, mape, float(np.sqrt(np.mean(error**2)) / max(actual.mean(), 1e-9))


Baseline = Callable[[np.ndarray], np.ndarray]


def _recent(width: int, mean: Callable[[np.ndarray], float]) -> Baseline:
    return lambda rates: np.array(
        [mean(rates[max(0, place - width + 1) : place + 1]) for place in range(len(rates))]
    )


def _ewma(memory: float) -> Baseline:
    def run(rates: np.ndarray) -> np.ndarray:
        mean, found = float(rates[0]), np.empty(len(rates))
        for place, rate in enumerate(rates):
            mean += memory * (float(rate) - mean)
            found[place] = mean
        return found

    return run


BASELINES: Final[dict[str, Baseline]] = {
    "last value": lambda rates: rates,
    "harmonic mean of 5": _recent(
        5, lambda rates: len(rates) / np.sum(1 / np.maximum(rates, 0.01))
    ),
    "mean of 5": _recent(5, lambda rates: float(np.mean(rates))),
    "EWMA 0.5": _ewma(0.5),
    "EWMA 0.2": _ewma(0.2),
}


def predict(data: Path) -> Report:
    """Judge the forecaster on everything below the folder. Raises: ConfigError."""
    traces = {name: read_traces(data, name) for name in SETS}
    everything = [trace for found in traces.values() for trace in found]
    seen = look(everything)
    fits = [fit([one for one in seen if one.trace.fold != fold]) for fold in range(FOLDS)]
    lines: list[Line] = []
    begun = time.process_time()
    foreseen = {trace: _foresee(trace, fits[trace.fold]) for trace in everything}
    spent = time.process_time() - begun
    samples = sum(len(trace.mbps) for trace in everything)
    for name, found in traces.items():
        for steps in HORIZONS:
            lines.append(_ours(name, steps, found, foreseen))
            for method, baseline in BASELINES.items():
                lines.append(_mean(name, steps, method, found, baseline))
            lines.append(_linear(name, steps, found))
            if (name, steps) in GBDT:
                lines.append(_quoted(name, steps))
    lines += _grid(read_grid(data))
    full = LinkForecaster()
    for rate in everything[0].mbps:
        full.update(float(rate))
    return Report(
        lines=tuple(lines),
        state_bytes=full.state_bytes,
        update_us=spent / samples * 1e6,
        samples=samples,
    )


def refit(data: Path) -> dict[int, HorizonFit]:
    """The constants that the plugin carries: fitted on every trace. Raises: ConfigError."""
    return fit(look([trace for name in SETS for trace in read_traces(data, name)]))


def _quoted(name: str, steps: int) -> Line:
    accuracy, mape, nrmse = GBDT[name, steps]
    method = "GBDT on 10 lags (quoted)" if steps else "GBDT with RTT (quoted)"
    return Line(set=name, steps=steps, method=method, accuracy=accuracy, mape=mape, nrmse=nrmse)


def _foresee(trace: Trace, fits: dict[int, HorizonFit]) -> dict[int, np.ndarray]:
    forecaster = LinkForecaster(fits)
    found: dict[int, list[tuple[float, float, float]]] = {steps: [] for steps in HORIZONS}
    for rate in trace.mbps:
        forecaster.update(float(rate))
        for steps in HORIZONS:
            one = forecaster.forecast(steps)
            found[steps].append((one.low, one.point, one.high))
    return {steps: np.array(rows) for steps, rows in found.items()}


def _judged(trace: Trace, steps: int) -> np.ndarray | None:
    """Where a forecast is judged; None if the trace is too short."""
    at = np.arange(FIRST - 1, len(trace.mbps) - steps)
    return at if len(at) >= _LEAST else None


def _ours(
    name: str, steps: int, traces: Sequence[Trace], foreseen: dict[Trace, dict[int, np.ndarray]]
) -> Line:
    rows = []
    for trace in traces:
        if (at := _judged(trace, steps)) is None:
            continue
        low, point, high = foreseen[trace][steps][at].T
        actual = trace.mbps[at + steps]
        inside = float(np.mean((actual >= low - 1e-9) & (actual <= high + 1e-9)))
        width = float(np.mean(high - low) / max(actual.mean(), 1e-9))
        rows.append((*scores(point, actual), inside, width))
    accuracy, mape, nrmse, covered, width = map(float, np.nanmean(np.array(rows), axis=0))
    return Line(
        set=name, steps=steps, method=OURS, accuracy=accuracy, mape=mape, nrmse=nrmse,
        covered=covered, width=width,
    )  # fmt: skip


def _mean(name: str, steps: int, method: str, traces: Sequence[Trace], baseline: Baseline) -> Line:
    rows = []
    for trace in traces:
        if (at := _judged(trace, steps)) is not None:
            rows.append(scores(baseline(trace.mbps)[at], trace.mbps[at + steps]))
    return _line(name, steps, method, rows)


def _line(name: str, steps: int, method: str, rows: Sequence[tuple[float, ...]]) -> Line:
    accuracy, mape, nrmse = map(float, np.nanmean(np.array(rows), axis=0))
    return Line(set=name, steps=steps, method=method, accuracy=accuracy, mape=mape, nrmse=nrmse)


def _linear(name: str, steps: int, traces: Sequence[Trace]) -> Line:
    """Least squares on ten lags, cross-validated."""
    parts = []
    for trace in traces:
        if (at := _judged(trace, steps)) is not None:
            lags = np.stack([trace.mbps[at - lag] for lag in range(_LAGS)], axis=1)
            parts.append((trace.fold, np.column_stack([lags, np.ones(len(at))]), at, trace.mbps))
    rows = []
    for fold in range(FOLDS):
        others = [part for part in parts if part[0] != fold]
        inputs = np.concatenate([part[1] for part in others])
        actual = np.concatenate([part[3][part[2] + steps] for part in others])
        rule = np.linalg.lstsq(inputs, actual, rcond=None)[0]
        for own, lags, at, rates in parts:
            if own == fold:
                rows.append(scores(np.maximum(lags @ rule, 0), rates[at + steps]))
    return _line(name, steps, "linear on 10 lags", rows)


def _grid(rows: Sequence[GridRow]) -> list[Line]:
    """Pairs that were never measured, and pairs some time later."""
    campaign = [row for row in rows if row.date == _CAMPAIGN]
    actual = np.array([row.gbps for row in campaign])
    found = np.empty((len(campaign), 3))
    plain, alike = np.empty(len(campaign)), np.empty(len(campaign))
    for fold in range(GRID_FOLDS):
        known = [row for row in rows if row.fold != fold and row.date in _EARLIER]
        model = PairModel(_measured(row, row.gbps, _EARLIER[row.date]) for row in known)
        same = [row for row in known if row.date == _CAMPAIGN]
        middle = float(np.median([row.gbps for row in same]))
        groups: dict[Any, list[float]] = {}
        for row in same:
            groups.setdefault(_kind(row), []).append(row.gbps)
        for place, row in enumerate(campaign):
            if row.fold == fold:
                asked = (0.05, QUANTILE, 0.95)
                found[place] = model.predict(row.source, row.target, row.round_trip_ms, asked)
                plain[place] = middle
                alike[place] = np.median(groups.get(_kind(row), [middle]))
    low, point, high = found.T
    accuracy, mape, nrmse = scores(point, actual)
    lines = [
        Line(
            set=UNSEEN,
            steps=0,
            method=OURS,
            accuracy=accuracy,
            mape=mape,
            nrmse=nrmse,
            covered=float(np.mean((actual >= low) & (actual <= high))),
            width=float(np.mean(high - low) / actual.mean()),
        ),
        _line(UNSEEN, 0, "median of all", [scores(plain, actual)]),
        _line(UNSEEN, 0, "median of cloud and tier pair", [scores(alike, actual)]),
        _quoted(UNSEEN, 0),
    ]
    for task, before, after in _LATER:
        lines += _again(task, rows, before, after)
    return lines


def _again(task: str, rows: Sequence[GridRow], before: str, after: str) -> list[Line]:
    """Known pairs in a later campaign: what the other pairs of that campaign say of the change."""
    last = {(row.source, row.target): row.gbps for row in rows if row.date == before}
    now = [row for row in rows if row.date == after and (row.source, row.target) in last]
    then = np.array([last[row.source, row.target] for row in now])
    actual = np.array([row.gbps for row in now])
    ours = np.empty(len(now))
    for fold in range(GRID_FOLDS):
        others = [row for row in now if row.fold != fold]
        drifts = PairModel(
            _measured(row, row.gbps / last[row.source, row.target]) for row in others
        )
        levels = PairModel(_measured(row, row.gbps) for row in others)
        for place, row in enumerate(now):
            if row.fold == fold:
                ends = (row.source, row.target, row.round_trip_ms)
                drift, level = drifts.predict(*ends), levels.predict(*ends)
                if drift and level:
                    ours[place] = later(then[place], drift[0], level[0])
    return [
        _line(task, 0, f"{OURS}, others measured again", [scores(ours, actual)]),
        _line(task, 0, "last measurement", [scores(then, actual)]),
    ]


def _measured(row: GridRow, rate: float, weight: float = 1.0) -> Measured:
    return Measured(
        source=row.source,
        target=row.target,
        round_trip_ms=row.round_trip_ms,
        rate=rate,
        weight=weight,
    )


def _kind(row: GridRow) -> tuple[str, str, str, str]:
    return (row.source.cloud, row.target.cloud, row.source.tier, row.target.tier)
