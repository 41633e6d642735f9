"""``novacron predict``: what is foreseen of links, and how good forecasts of moves were."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from novacron import ShellState

    from novacron_transport_pba._lessons import Lessons, ScoredMove


@click.group("predict")
def predict() -> None:
    """See what this node foresees of its links, and how good its forecasts were."""


def _read(state: ShellState) -> Lessons:
    from novacron_transport_pba import _lessons

    return _lessons.read(_lessons.folder_of(state.config.node.state_dir))


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@predict.command("show")
@_json
@click.pass_obj
def show(state: ShellState, as_json: bool) -> None:
    """The links' forecasts as the last move left them, and what machines' moves have taught."""
    from novacron_transport_pba._mind import Mind

    mind = Mind.of(_read(state))
    links = []
    for target, link in sorted(mind.links.items()):
        one: dict[str, Any] = {"target": target, "seconds_seen": link.forecaster.samples}
        for steps in (1, 10):
            if (found := link.forecast(steps)) is not None:
                one[f"in_{steps}_s"] = {
                    "low": round(found.low),
                    "point": round(found.point),
                    "high": round(found.high),
                }
        one["last_move_bytes_per_s"] = round(mind.lessons.links[target].rate_bytes_per_s)
        links.append(one)
    machines = [
        {
            "machine": name.rpartition("/")[0],
            "codec": name.rpartition("/")[2],
            "moves": lesson.moves,
            "bytes_per_used": round(lesson.bytes_per_used, 3),
            "tail_s": round(lesson.tail_s, 2),
            "pause_ms": round(lesson.pause_ms, 1),
        }
        for name, lesson in sorted(mind.lessons.machines.items())
    ]
    if as_json or state.json:
        state.print_json({"links": links, "machines": machines})
        return
    state.table(
        "links, MB/s with 90 % bounds",
        ("target", "seconds seen", "in 1 s", "in 10 s", "last move"),
        [
            (
                one["target"],
                one["seconds_seen"],
                _rate(one.get("in_1_s")),
                _rate(one.get("in_10_s")),
                f"{one['last_move_bytes_per_s'] / 1e6:.1f}",
            )
            for one in links
        ],
    )
    state.table(
        "machines",
        ("machine", "codec", "moves", "sent per byte in use", "tail s", "pause ms"),
        [tuple(one.values()) for one in machines],
    )


def _rate(found: dict[str, int] | None) -> str:
    if found is None:
        return ""
    return f"{found['point'] / 1e6:.1f} ({found['low'] / 1e6:.1f} to {found['high'] / 1e6:.1f})"


@predict.command("calibration")
@_json
@click.pass_obj
def calibration(state: ShellState, as_json: bool) -> None:
    """What was foreseen of finished moves beside what happened."""
    lessons = _read(state)
    kinds = [_kind(kind, lessons) for kind in _pairs_of]
    moves = [_told(move) for move in lessons.moves]
    if as_json or state.json:
        state.print_json({"kinds": kinds, "moves": moves})
        return
    state.table(
        "forecasts against what happened",
        ("what", "moves", "median error", "90 % bounds held"),
        [
            (
                one["what"],
                one["moves"],
                "" if one["median_error"] is None else f"{one['median_error']:.0%}",
                "" if one["covered"] is None else f"{one['covered']:.0%}",
            )
            for one in kinds
        ],
    )
    state.table(
        "the last moves",
        ("machine", "to", "seconds", "foreseen", "MB", "foreseen", "pause ms", "foreseen"),
        [
            (
                move.machine,
                move.target,
                f"{move.seconds:.1f}",
                _span(move.plan_seconds, 1.0),
                f"{move.bytes / 1e6:.0f}",
                _span(move.plan_bytes, 1e-6),
                f"{move.pause_ms:.0f}",
                _span(move.plan_pause_ms, 1.0),
            )
            for move in lessons.moves[-10:]
        ],
    )


def _span(found: tuple[float, float, float] | None, factor: float) -> str:
    if found is None:
        return ""
    low, middle, high = (value * factor for value in found)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


Pair = tuple[tuple[float, float, float] | None, float]


def _eta(quarter: str, move: ScoredMove) -> Pair:
    found = move.etas.get(quarter)
    return (None, 0.0) if found is None else (found[:3], found[3])


_pairs_of: dict[str, Callable[[ScoredMove], Pair]] = {
    "seconds of a plan": lambda move: (move.plan_seconds, move.seconds),
    "bytes of a plan": lambda move: (move.plan_bytes, move.bytes),
    "pause of a plan": lambda move: (move.plan_pause_ms, move.pause_ms),
    "time left at 25 %": lambda move: _eta("25", move),
    "time left at 50 %": lambda move: _eta("50", move),
    "time left at 75 %": lambda move: _eta("75", move),
}


def _kind(what: str, lessons: Lessons) -> dict[str, Any]:
    pairs = [_pairs_of[what](move) for move in lessons.moves]
    known = [(found, actual) for found, actual in pairs if found is not None and actual > 0]
    return {
        "what": what,
        "moves": len(known),
        "median_error": median(abs(found[1] - actual) / actual for found, actual in known)
        if known
        else None,
        "covered": sum(found[0] <= actual <= found[2] for found, actual in known) / len(known)
        if known
        else None,
    }


def _told(move: ScoredMove) -> dict[str, Any]:
    import msgspec

    told: dict[str, Any] = msgspec.to_builtins(move)
    return told
