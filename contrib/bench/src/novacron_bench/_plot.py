"""Bars as SVG: small, and readable in any browser without a library that draws."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from attrs import frozen

from novacron_bench._rows import Spread, Summary

_WIDTH: Final = 860
_LEFT: Final = 230
_RIGHT: Final = 120
_BAR: Final = 20
_GAP: Final = 8
_HEAD: Final = 56
_COLOURS: Final = {"stock": "#9aa5b1", "stock-tls": "#616e7c", "own": "#2b8a3e"}


@frozen(kw_only=True)
class Bar:
    """One bar with its spread and its kind, which picks the colour."""

    label: str
    spread: Spread
    kind: str


def bars_svg(title: str, unit: str, bars: Sequence[Bar]) -> str:
    """One chart: the median as a bar, least to most as a line over it."""
    height = _HEAD + len(bars) * (_BAR + _GAP) + 16
    most = max((bar.spread.most for bar in bars), default=0.0) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="24" font-size="16" font-weight="bold">{escape(title)}</text>',
        f'<text x="16" y="42" fill="#616e7c">{escape(unit)}; median, least to most</text>',
    ]
    for number, bar in enumerate(bars):
        y = _HEAD + number * (_BAR + _GAP)
        middle = y + _BAR / 2
        width = bar.spread.median * scale
        least, most_x = (_LEFT + value * scale for value in (bar.spread.least, bar.spread.most))
        said = f"{'> ' if bar.spread.at_least else ''}{bar.spread.median:.3g}"
        parts += [
            f'<text x="{_LEFT - 8}" y="{middle + 5:.1f}" text-anchor="end">'
            f"{escape(bar.label)}</text>",
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" '
            f'fill="{_COLOURS.get(bar.kind, _COLOURS["own"])}"/>',
            f'<line x1="{least:.1f}" x2="{most_x:.1f}" y1="{middle}" y2="{middle}" '
            'stroke="#1f2933" stroke-width="2"/>',
            f'<text x="{max(most_x, _LEFT + width) + 6:.1f}" y="{middle + 5:.1f}">{said}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def write_plots(folder: Path, summaries: Sequence[Summary]) -> list[Path]:
    """One chart per link, workload and figure; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    charts: dict[tuple[str, str], list[Summary]] = {}
    for one in summaries:
        charts.setdefault((one.link, one.workload), []).append(one)
    written = []
    for (link, workload), group in charts.items():
        for figure, unit, factor in (
            ("seconds", "total time, s", 1.0),
            ("pause_s", "pause that the guest felt, ms", 1e3),
            ("there_bytes", "on the wire, MB", 1e-6),
        ):
            bars = [
                Bar(label=label(one), spread=_scaled(spread, factor), kind=_kind(one))
                for one in group
                if (spread := getattr(one, figure)) is not None
            ]
            if bars:
                name = f"{link}-{workload}-{figure.partition('_')[0]}.svg"
                path = folder / name.replace(",", "_").replace("%", "pct").replace("/", "_")
                path.write_text(bars_svg(f"{link}, {workload}", unit, bars))
                written.append(path)
    return written


def label(one: Summary) -> str:
    """An entry, with its scenario where that is not the cold one."""
    return one.entry if one.scenario == "cold" else f"{one.entry} ({one.scenario})"


def _scaled(spread: Spread, factor: float) -> Spread:
    return Spread(
        median=spread.median * factor,
        least=spread.least * factor,
        most=spread.most * factor,
        at_least=spread.at_least,
    )


def _kind(one: Summary) -> str:
    return "own" if not one.stock else "stock-tls" if one.encrypted else "stock"
