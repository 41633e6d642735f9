"""A plan for people: a table, a Gantt picture for the terminal, and the same as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]

BAR_WIDTH: Final = 48
# One colour per target, in their order; readable on dark and light ground.
_COLOURS: Final = ("cyan", "magenta", "green", "yellow", "blue", "red")
_SVG_COLOURS: Final = ("#00838f", "#8e24aa", "#2e7d32", "#ef6c00", "#1565c0", "#c62828")
_ROW: Final = 22
_LEFT: Final = 150
_PICTURE: Final = 720


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "for ever"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(count: float) -> str:
    return f"{count / 1e6:,.0f} MB" if count < 10e9 else f"{count / 1e9:,.1f} GB"


def summary(plan: Json) -> list[str]:
    """What the plan comes to, in sentences."""
    count, bound = len(plan["moves"]), plan["bound_s"]
    lines = [
        f"{count} machines, {size(plan['wire_bytes'])} on the wire, in "
        f"{duration(plan['makespan_s'])} ({duration(plan['makespan_low_s'])} to "
        f"{duration(plan['makespan_high_s'])})"
    ]
    if bound and plan["makespan_s"]:
        lines.append(
            f"no plan takes less than {duration(bound)} ({plan['bound_why']} decides); this one "
            f"takes {plan['makespan_s'] / bound:.2f} times that"
        )
    if "chance" in plan:
        lines.append(f"the deadline is kept with a chance of {plan['chance']:.0%}")
    at_once = ", ".join(f"{count} to {target}" for target, count in sorted(plan["at_once"].items()))
    if at_once:
        lines.append(f"moves at once: {at_once}")
    for link in plan["links"]:
        lines.append(f"{link['name']}: {link['rate_bytes_per_s'] / 1e6:,.1f} MB/s expected")
    return lines


def table(plan: Json) -> Table:
    shown = Table(header_style="bold")
    for name in ("", "machine", "to", "on the wire", "rate", "begins", "ends", "at 90 %"):
        right = name in ("", "on the wire", "rate", "begins", "ends")
        shown.add_column(name, justify="right" if right else "left")
    for number, move in enumerate(plan["moves"], 1):
        rate = move["rate_bytes_per_s"]
        shown.add_row(
            str(number),
            Text(move["machine"]),
            Text(move["target"]),
            size(move["wire_bytes"]),
            "" if rate is None else f"{rate / 1e6:,.1f} MB/s",
            duration(move["begin_s"]),
            duration(move["end_s"]),
            f"{duration(move['end_low_s'])} to {duration(move['end_high_s'])}",
        )
    return shown


def gantt(plan: Json, width: int = BAR_WIDTH, *, now_s: float | None = None) -> RenderableType:
    """A bar per machine: prepared and held ready (░), copied and handed over (█), and by how much
    later it may have arrived (·)."""
    moves: Sequence[Json] = plan["moves"]
    end = max((move["end_high_s"] or 0.0 for move in moves), default=0.0) or 1.0
    targets = sorted({move["target"] for move in moves})
    grid = Table.grid(padding=(0, 1))
    for move in sorted(moves, key=lambda move: (move["target"], move["begin_s"] or 0.0)):
        colour = _COLOURS[targets.index(move["target"]) % len(_COLOURS)]
        bar = Text("".join(_cell(move, (n + 0.5) / width * end) for n in range(width)), colour)
        if now_s is not None and 0 <= now_s < end:
            bar.stylize("reverse", int(now_s / end * width), int(now_s / end * width) + 1)
        grid.add_row(Text(move["target"], colour), Text(move["machine"]), bar)
    middle = duration(end / 2)
    axis = "0" + middle.center(width - 1 - len(duration(end))) + duration(end)
    grid.add_row("", "", Text(axis, "dim"))
    return grid


def _cell(move: Json, at_s: float) -> str:
    begin, copy, end = move["begin_s"], move["copy_s"], move["end_s"]
    if begin is None or at_s < begin or copy is None:
        return " "
    if at_s < copy:
        return "░"
    if end is None or at_s < end:
        return "█"
    return "·" if at_s < (move["end_high_s"] or end) else " "


def picture(plan: Json) -> RenderableType:
    """All of it."""
    parts: list[RenderableType] = [table(plan), gantt(plan), *summary(plan)]
    parts += [
        Text(f"stays: {name}: {reason}", "yellow") for name, reason in plan["stranded"].items()
    ]
    return Group(*parts)


def svg(plan: Json, title: str) -> str:
    """The Gantt picture as a file of its own."""
    moves = sorted(plan["moves"], key=lambda move: (move["target"], move["begin_s"] or 0.0))
    end = max((move["end_high_s"] or 0.0 for move in moves), default=0.0) or 1.0
    targets = sorted({move["target"] for move in moves})
    height = _ROW * (len(moves) + 3)

    def x(seconds: float) -> float:
        return round(_LEFT + seconds / end * _PICTURE, 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _PICTURE + 30}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        f'<text x="8" y="16" font-weight="bold">{escape(title)}</text>',
        f'<text x="8" y="34">{escape(summary(plan)[0])}</text>',
    ]
    for number, move in enumerate(moves):
        y = _ROW * (number + 2)
        colour = _SVG_COLOURS[targets.index(move["target"]) % len(_SVG_COLOURS)]
        label = escape(f"{move['machine']} to {move['target']}")
        lines.append(f'<text x="8" y="{y + 15}">{label}</text>')
        begin, copy, over = move["begin_s"], move["copy_s"], move["end_s"]
        if begin is None or copy is None or over is None:
            continue
        for left, right, opacity in (
            (begin, copy, 0.35),
            (copy, over, 1.0),
            (over, max(move["end_high_s"] or over, over), 0.15),
        ):
            lines.append(
                f'<rect x="{x(left)}" y="{y + 3}" width="{round(x(right) - x(left), 1)}" '
                f'height="{_ROW - 6}" fill="{colour}" fill-opacity="{opacity}"/>'
            )
    bottom = _ROW * (len(moves) + 2)
    for part in range(5):
        seconds = end * part / 4
        lines.append(
            f'<text x="{x(seconds)}" y="{bottom + 16}" text-anchor="middle" fill="#666">'
            f"{escape(duration(seconds))}</text>"
        )
    if plan["bound_s"]:
        lines.append(
            f'<line x1="{x(plan["bound_s"])}" x2="{x(plan["bound_s"])}" y1="{2 * _ROW}" '
            f'y2="{bottom}" stroke="#444" stroke-dasharray="4 3"/>'
        )
    return "\n".join([*lines, "</svg>", ""])
