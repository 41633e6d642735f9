"""The results as tables, with ratios against stock QEMU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from novacron_bench._plot import label
from novacron_bench._rows import Spread, Summary, best_stock, times_faster, times_fewer

COLUMNS = (
    "entry",
    "moved",
    "total s",
    "pause ms",
    "stall ms",
    "MB there",
    "pace",
    "x default",
    "x default/bbr",
    "x best",
    "x best TLS",
    "bytes x best",
)


def tables(summaries: Iterable[Summary]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Per link and workload a title and its rows, in the columns of `COLUMNS`.

    "x default" is the factor by which an entry takes less time than stock QEMU as installed, with
    CUBIC; "x best" against the fastest plaintext stock variant with the same congestion control and
    buffers, "x best TLS" against the fastest encrypted one.
    """
    groups: dict[tuple[str, str], list[Summary]] = {}
    for one in summaries:
        groups.setdefault((one.link, one.workload), []).append(one)
    return [
        (f"{link}, {workload}", [_row(one, group) for one in group])
        for (link, workload), group in groups.items()
    ]


def _row(one: Summary, group: Sequence[Summary]) -> tuple[str, ...]:
    alike = [other for other in group if _tuning(other) == _tuning(one)]
    best, best_tls = best_stock(alike), best_stock(alike, encrypted=True)
    moved = f"{one.good}/{one.runs}" + (f", {one.cut} cut off" if one.cut else "")
    return (
        label(one),
        moved if one.good else "; ".join((moved, *one.reasons))[:160],
        _spread(one.seconds, 1, 2),
        _spread(one.pause_s, 1e3, 0),
        _spread(one.stall_s, 1e3, 0),
        _spread(one.there_bytes, 1e-6, 0),
        _spread(one.pace, 100, 0, "%"),
        times_faster(one, _named(group, "default/cubic")),
        times_faster(one, _named(group, "default/bbr")),
        times_faster(one, best),
        times_faster(one, best_tls),
        times_fewer(one, best),
    )


def _tuning(one: Summary) -> str:
    """Congestion control and buffers of an entry."""
    return one.entry.partition("/")[2]


def _named(group: Sequence[Summary], entry: str) -> Summary | None:
    return next((one for one in group if one.entry == entry and one.stock), None)


def _spread(spread: Spread | None, factor: float, digits: int, unit: str = "") -> str:
    if spread is None:
        return ""
    median, least, most = (
        f"{value * factor:.{digits}f}" for value in (spread.median, spread.least, spread.most)
    )
    sign = "> " if spread.at_least else ""
    return f"{sign}{median}{unit}" + (f" ({least} to {most})" if least != most else "")
