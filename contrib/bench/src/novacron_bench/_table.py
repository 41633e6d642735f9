"""The results as tables, with ratios against stock QEMU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from novacron_bench._eta import eta_text
from novacron_bench._plot import label
from novacron_bench._rows import Spread, Summary, best_stock, times_faster, times_fewer

COLUMNS: Final = (
    *("entry", "moved", "total s", "pause ms", "MB there", "stall ms", "pace"),
    "ETA off at 25/50/75 %",
)
RATIO_COLUMNS: Final = ("entry", "default/cubic", "default/bbr", "best", "best TLS", "bytes, best")

Rows = list[tuple[str, ...]]


def tables(summaries: Iterable[Summary]) -> Iterator[tuple[str, Rows, Rows, list[str]]]:
    """Per link and workload: a title, rows in the columns of `COLUMNS`, rows in those of
    `RATIO_COLUMNS`, and notes.

    A ratio is the factor by which an entry takes less time than stock QEMU: as installed, with
    CUBIC or BBR; than the fastest plaintext variant with the same congestion control and buffers;
    than the fastest encrypted one. The last is the factor of fewer bytes than that fastest variant.
    """
    groups: dict[tuple[str, str], list[Summary]] = {}
    for one in summaries:
        groups.setdefault((one.link, one.workload), []).append(one)
    for (link, workload), group in groups.items():
        notes = [f"{label(one)}: {'; '.join(one.reasons)}" for one in group if one.reasons]
        yield (
            f"{link}, {workload}",
            [_row(one) for one in group],
            [_ratios(one, group) for one in group if one.good],
            notes,
        )


def _row(one: Summary) -> tuple[str, ...]:
    return (
        label(one),
        f"{one.good}/{one.runs}",
        _spread(one.seconds, 1, 2),
        _spread(one.pause_s, 1e3, 0),
        _spread(one.there_bytes, 1e-6, 0),
        _spread(one.stall_s, 1e3, 0),
        _spread(one.pace, 100, 0, "%"),
        eta_text(one.eta_errors),
    )


def _ratios(one: Summary, group: Sequence[Summary]) -> tuple[str, ...]:
    alike = [other for other in group if _tuning(other) == _tuning(one)]
    best, best_tls = best_stock(alike), best_stock(alike, encrypted=True)
    return (
        label(one),
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
