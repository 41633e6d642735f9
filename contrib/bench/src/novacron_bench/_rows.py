"""What the benchmark measured: one row per run, kept in a file of JSON lines that only grows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import cattrs
from attrs import field, frozen
from novacron import ConfigError

from novacron_bench._eta import eta_errors

Key = tuple[str, str, str, str, int]


@frozen(kw_only=True)
class Row:
    """One run.

    Attributes:
        link, workload, entry, scenario: What was measured; see the command's options.
        run: Its number, from 1.
        memory_mib: The guest's memory.
        outcome: ``moved``, ``cut off`` or ``failed``.
        reason: Why it did not move.
        seconds: From the command to the mover's own "done", or to the cut.
        pause_s: That the guest felt: from its last beat at the source to its first at the
            destination.
        alive_s: From the command to the first beat at the destination.
        there_bytes, back_bytes: That entered the link, IP headers counted, what was sent again too.
        stall_s: The longest time between two beats after the arrival.
        pace: Beats per second during the copy as a part of the guest's own pace: what it lost.
        writes_lost: Whether the workload went back in time (it never must).
        intact: Whether the guest found its disk cache, heap and records whole; None: not asked.
        host_cpu_s: CPU seconds of this whole host during the move, guests and link included.
        stock, encrypted: What kind of entry it is.
        figures: What the mover itself said.
        at: When, as ISO 8601.
        host: What it was measured on.
    """

    link: str
    workload: str
    entry: str
    scenario: str = "cold"
    run: int = 1
    memory_mib: int = 1024
    outcome: str
    reason: str = ""
    seconds: float = 0.0
    pause_s: float | None = None
    alive_s: float | None = None
    there_bytes: int = 0
    back_bytes: int = 0
    stall_s: float | None = None
    pace: float | None = None
    writes_lost: bool = False
    intact: bool | None = None
    host_cpu_s: float = 0.0
    stock: bool = False
    encrypted: bool = False
    figures: Mapping[str, Any] = field(factory=dict)
    at: str = ""
    host: Mapping[str, Any] = field(factory=dict)

    @property
    def key(self) -> Key:
        return (self.link, self.workload, self.entry, self.scenario, self.run)

    @property
    def good(self) -> bool:
        """Whether the guest moved, lives, and lost nothing."""
        return self.outcome == "moved" and self.intact is not False and not self.writes_lost


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, none if there is no such file.

    A last line that was cut off by a crash is left out. Raises ConfigError for any other that
    cannot be read.
    """
    try:
        lines = path.read_text().split("\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(cattrs.structure(json.loads(line), Row))
        except (ValueError, TypeError, KeyError, cattrs.BaseValidationError) as error:
            if number == len(lines):
                break
            raise ConfigError(
                f"{path}, line {number}: this is no row of the benchmark",
                hint="name another file with --results, or take the line out",
            ) from error
    return rows


def append_row(path: Path, row: Row) -> None:
    """Add a row, and leave what an interrupted run began out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(attrs.asdict(row), default=str).encode() + b"\n")


@frozen(kw_only=True)
class Spread:
    """Several figures of one kind. ``at_least``: the median was cut off, the truth is above."""

    median: float
    least: float
    most: float
    at_least: bool = False

    @classmethod
    def of(cls, values: Sequence[float], *, at_least: bool = False) -> Spread | None:
        if not values:
            return None
        return cls(median=median(values), least=min(values), most=max(values), at_least=at_least)


@frozen(kw_only=True)
class Summary:
    """All runs of one entry on one link with one workload.

    Attributes:
        eta_errors: How far off the time left was that the mover itself foresaw, as parts of the
            truth, at a quarter, half and three quarters of its time; of movers that say it.
        seconds: A run that was cut off counts with the time of its cut, as the least it would take.
        pause_s, there_bytes, stall_s, pace: Of the runs that moved.
    """

    link: str
    workload: str
    entry: str
    scenario: str
    runs: int
    good: int
    cut: int
    stock: bool
    encrypted: bool
    seconds: Spread | None
    pause_s: Spread | None
    there_bytes: Spread | None
    stall_s: Spread | None
    pace: Spread | None
    reasons: tuple[str, ...]
    eta_errors: Mapping[str, list[float]] = field(factory=dict)


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """One summary per entry, in the order in which they first appear."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.link, row.workload, row.scenario, row.entry), []).append(row)
    return [_summary(group) for group in groups.values()]


def _summary(rows: list[Row]) -> Summary:
    first = rows[0]
    good = [row for row in rows if row.good]
    cut = [row for row in rows if row.outcome == "cut off"]
    timed = [row.seconds for row in (*good, *cut)]

    def over(values: Iterable[float | None]) -> Spread | None:
        return Spread.of([value for value in values if value is not None])

    return Summary(
        link=first.link,
        workload=first.workload,
        entry=first.entry,
        scenario=first.scenario,
        runs=len(rows),
        good=len(good),
        cut=len(cut),
        stock=first.stock,
        encrypted=first.encrypted,
        seconds=Spread.of(timed, at_least=2 * len(cut) > len(timed)),
        pause_s=over(row.pause_s for row in good),
        there_bytes=over(row.there_bytes for row in (good or cut)),
        stall_s=over(row.stall_s for row in good),
        pace=over(row.pace for row in good),
        reasons=tuple(dict.fromkeys(_reason(row) for row in rows if not row.good)),
        eta_errors=eta_errors(row.figures for row in good),
    )


def _reason(row: Row) -> str:
    if row.outcome == "moved":
        return "arrived, but not whole" if row.intact is False else "arrived, but back in time"
    return row.reason or row.outcome


def best_stock(summaries: Iterable[Summary], *, encrypted: bool = False) -> Summary | None:
    """The stock entry of the shortest median time among those that always moved."""
    fair = [
        one
        for one in summaries
        if one.stock and one.encrypted is encrypted and one.good == one.runs and one.seconds
    ]
    return min(fair, key=lambda one: one.seconds.median if one.seconds else 0.0, default=None)


def times_faster(one: Summary, other: Summary | None) -> str:
    """By what factor ``one`` takes less time; with ``≥`` where the other was cut off."""
    if other is None or one is other or not one.seconds or not other.seconds:
        return ""
    if one.seconds.at_least:
        return ""
    sign = "≥ " if other.seconds.at_least else ""
    return f"{sign}{other.seconds.median / one.seconds.median:.2f}"


def times_fewer(one: Summary, other: Summary | None) -> str:
    """By what factor ``one`` sends fewer bytes."""
    if other is None or one is other or not one.there_bytes or not other.there_bytes:
        return ""
    return f"{other.there_bytes.median / max(one.there_bytes.median, 1):.2f}"
