"""The answer of a dry run: what a move would do, what it would cost, and what stands in its way."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from novacron import ConfigError, MigrationPlan

from novacron_server._units import one_line, show_rate, show_seconds, show_size

if TYPE_CHECKING:
    from rich.text import Text

Json = Mapping[str, Any]
Interval = tuple[float, float, float]


class PlannedMachine(msgspec.Struct, kw_only=True):
    """What would move."""

    name: str
    driver: str
    memory_bytes: int
    settings: dict[str, Any]
    tenant: str = ""


class PlannedObstacle(msgspec.Struct, kw_only=True):
    """Something in the way of a move, and its cure.

    `code` is stable. `blocks` says whether the move is refused; if not, it is only worth knowing.
    `side` is who found it: source, target or link. `facts` has the same for programs: `setting` and
    `value` to set of the machine, `option` and `value` to say with the move, `run`, a command for
    the side's host, `path`, the file that it is about.
    """

    code: str
    what: str
    cure: str
    blocks: bool
    side: str
    facts: dict[str, Any]


class PlannedCost(msgspec.Struct, kw_only=True):
    """What is foreseen: low bound, median and high bound of each, null where nothing can be said.

    `bytes` on the wire, `seconds` from the beginning to the end, `pause_ms` as the guest feels it.
    `confidence` is how often the truth lies between the bounds, 0 where nobody has measured it.
    """

    bytes: Interval | None = None
    seconds: Interval | None = None
    pause_ms: Interval | None = None
    confidence: float = 0.0
    reason: str = ""


class Plan(msgspec.Struct, kw_only=True):
    """What a move would do, known before a byte leaves.

    `blocked`: it would be refused, for all `obstacles` whose `blocks` is true, at once.
    """

    machine: PlannedMachine
    source: str
    target: str
    mode: str
    providers: dict[str, str]
    storage: str
    max_downtime_ms: int
    rate_bytes_per_s: int | None
    round_trip_ms: float | None
    target_codecs: list[str]
    estimate: PlannedCost
    blocked: bool
    obstacles: list[PlannedObstacle]


def answer(plan: MigrationPlan) -> Plan:
    """The node's plan as the API's typed answer."""
    values = msgspec.to_builtins(plan, enc_hook=str, str_keys=True)
    return msgspec.convert({**values, "blocked": plan.blocked}, Plan, strict=False)


def write(plan: Json, path: Path) -> None:
    """Write a plan as JSON, whole or not at all. Raises ConfigError."""
    text = msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n"
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        unfinished.write_bytes(text)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ConfigError(
            f"the plan cannot be written to {path}: {error.strerror or error}",
            hint="name a file in a folder that is there and can be written to",
        ) from error


# For people.


def title(plan: Json) -> str:
    """The plan in a line."""
    blocking = sum(obstacle["blocks"] for obstacle in plan["obstacles"])
    move = f"{plan['machine']['name']} to {plan['target']}"
    if blocking:
        things = "one obstacle" if blocking == 1 else f"{blocking} obstacles"
        return f"{move}: would be refused, {things}"
    return f"{move}: nothing stands in the way"


def rows(plan: Json) -> list[tuple[str, str]]:
    """What the move would do and cost."""
    cost, rate, round_trip = plan["estimate"], plan["rate_bytes_per_s"], plan["round_trip_ms"]
    sure = f", {cost['confidence']:.0%} of the time" if cost["confidence"] else ""

    def interval(name: str, show: Any, unknown: str = "unknown") -> str:
        if (values := cost[name]) is None:
            return unknown
        low, median, high = (show(value) for value in values)
        return f"{median} ({low} to {high}{sure})"

    disks = {"copy": "go along", "shared": "are shared"}.get(plan["storage"], "as its settings say")
    return [
        ("machine", f"{plan['machine']['name']} ({show_size(plan['machine']['memory_bytes'])})"),
        ("from", plan["source"]),
        ("to", plan["target"]),
        ("mode", plan["mode"]),
        *sorted(plan["providers"].items()),
        ("disks", disks),
        ("longest pause", f"{plan['max_downtime_ms']} ms"),
        ("limit", show_rate(rate) if rate else "none"),
        ("will be sent", interval("bytes", show_size)),
        ("will take", interval("seconds", show_seconds, "unknown until the link's rate is")),
        ("will pause", interval("pause_ms", lambda value: f"{value:.0f} ms")),
        ("foreseen from", cost["reason"] or "nothing"),
        ("round trip", f"{round_trip:g} ms" if round_trip is not None else "not measured"),
    ]


def obstacle_lines(plan: Json) -> list[Text]:
    """Each obstacle with its cure and with who found it, those that block first; what peers say
    has no control characters here."""
    from rich.text import Text

    obstacles: Sequence[Json] = plan["obstacles"]
    found_by = {side: f"{side} {plan[side]}" for side in ("source", "target")}
    if not obstacles:
        return [Text("✓ nothing stands in the way of this move", style="green")]
    lines: list[Text] = []
    for obstacle in sorted(obstacles, key=lambda obstacle: not obstacle["blocks"]):
        mark, style = ("✗", "bold red") if obstacle["blocks"] else ("!", "bold yellow")
        head = Text(f"{mark} {one_line(obstacle['code'])}", style=style)
        lines += [
            head.append(f" ({found_by.get(obstacle['side'], 'link')})", style="dim"),
            Text(f"    {one_line(obstacle['what'])}"),
            Text("    cure: ", style="bold").append(one_line(obstacle["cure"]), style="not bold"),
        ]
    return lines
