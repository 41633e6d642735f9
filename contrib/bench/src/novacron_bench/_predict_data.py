"""The measured links that forecasts are judged on: reading them, and parting them into folds.

Nothing of the data is part of this project; the folder is named on the command line.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from attrs import field, frozen
from novacron import ConfigError
from novacron_transport_pba import End

CELLULAR: Final = "mahimahi_cellular"
SETS: Final = (CELLULAR, "norway_hsdpa", "fcc_broadband")
GRID: Final = "wan_region_grid"
FOLDS: Final = 4
GRID_FOLDS: Final = 5
_BINS: Final = 10  # of 100 ms make one sample of the cellular set
_LEAST: Final = 30
_LINES_MAX: Final = 1_000_000


@frozen
class Trace:
    """One link over time, in Mbit/s, and the fold that it is judged in."""

    set: str
    name: str
    fold: int
    mbps: np.ndarray = field(eq=False)


def read_traces(data: Path, name: str) -> list[Trace]:
    """The traces of a set that are long enough. Raises: ConfigError."""
    found = []
    for path in sorted((data / name).glob("*.csv")):
        rates = np.array([float(row["mbps"]) for row in _rows(path, ("t_s", "mbps"))])
        if name == CELLULAR:
            rates = rates[: len(rates) // _BINS * _BINS].reshape(-1, _BINS).mean(axis=1)
        if len(rates) >= _LEAST:
            found.append((path.stem, rates))
    if not found:
        raise ConfigError(
            f"{data / name} has no traces", hint="name the folder of the bandwidth data with --data"
        )
    names = [stem for stem, _ in found]
    folds = trace_folds(names)
    return [
        Trace(name, stem, fold, rates) for (stem, rates), fold in zip(found, folds, strict=True)
    ]


def trace_folds(names: Sequence[str]) -> list[int]:
    """A fold per trace. Both directions of a drive share one; the trips of a vehicle are parted
    into blocks of neighbours, as neighbours may be pieces of one trip; units go in turn."""
    units = [re.sub(r"_(up|down)$", "", name) for name in names]
    groups: dict[str, list[tuple[int, str]]] = {}
    for unit in dict.fromkeys(units):
        vehicle, _, number = unit.rpartition("_")
        trip = vehicle.startswith("norway_")
        group = vehicle if trip else ""
        groups.setdefault(group, []).append((int(number) if trip else len(groups), unit))
    fold_of: dict[str, int] = {}
    for group, members in groups.items():
        if group:
            members.sort()
        for place, (_, unit) in enumerate(members):
            fold_of[unit] = place * FOLDS // len(members) if group else place % FOLDS
    return [fold_of[unit] for unit in units]


@frozen
class GridRow:
    """One throughput between two regions, in Gbit/s."""

    date: str
    source: End
    target: End
    round_trip_ms: float
    gbps: float
    fold: int


def read_grid(data: Path) -> list[GridRow]:
    """All campaigns; a region pair is in one fold, in both directions. Raises: ConfigError."""
    folder = data / GRID
    exact: dict[tuple[End, End], list[float]] = {}
    pairs: dict[frozenset[str], list[float]] = {}
    columns = ("src", "dst", "src_tier", "dst_tier")
    for row in _rows(folder / "rtt_ms.csv", (*columns, "min_rtt")):
        value = float(row["min_rtt"])
        exact.setdefault(_ends(row), []).append(value)
        pairs.setdefault(frozenset((row["src"], row["dst"])), []).append(value)
    between = {pair: median(values) for pair, values in pairs.items()}
    rows = list(_rows(folder / "throughput.csv", ("date", *columns, "received_gbps")))
    names = sorted({tuple(sorted((row["src"], row["dst"]))) for row in rows})
    places = np.random.default_rng(0).permutation(len(names))
    folds = {
        frozenset(pair): int(place) % GRID_FOLDS for pair, place in zip(names, places, strict=True)
    }
    regions = sorted({region for pair in names for region in pair})
    guesses: dict[frozenset[str], float] = {}
    found = []
    for row in rows:
        source, target = _ends(row)
        pair = frozenset((source.region, target.region))
        if (source, target) in exact:
            round_trip = median(exact[source, target])
        elif pair in between:
            round_trip = between[pair]
        else:
            if pair not in guesses:
                guesses[pair] = _guessed(source.region, target.region, regions, between)
            round_trip = guesses[pair]
        rate = max(float(row["received_gbps"]), 1e-3)
        found.append(GridRow(row["date"], source, target, round_trip, rate, folds[pair]))
    return found


def _ends(row: dict[str, str]) -> tuple[End, End]:
    source, target = row["src"], row["dst"]
    return (
        End(source, source.partition(":")[0], row["src_tier"]),
        End(target, target.partition(":")[0], row["dst_tier"]),
    )


def _guessed(
    source: str, target: str, regions: Sequence[str], between: dict[frozenset[str], float]
) -> float:
    """A round trip that nobody measured: as from the neighbours of either end."""
    total = weights = 0.0
    for here, there in ((source, target), (target, source)):
        for region in regions:
            near = between.get(frozenset((here, region)))
            onward = between.get(frozenset((region, there)))
            if near is not None and onward is not None:
                weight = math.exp(-near / 8)
                total += weight * onward
                weights += weight
    return total / weights if weights > 1e-9 else 150.0


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if missing := set(columns) - set(reader.fieldnames or ()):
                raise ConfigError(
                    f"{path} lacks the column {sorted(missing)[0]!r}", hint="is it the right file?"
                )
            for number, row in enumerate(reader):
                if number > _LINES_MAX:
                    raise ConfigError(f"{path} has more than {_LINES_MAX} lines", hint="cut it")
                yield row
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", hint="name the folder with --data"
        ) from error
