"""``novacron threats``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
from novacron import ConfigError, ShellState

from novacron_security_threats._quarantine import OPERATOR, Register, as_json, utc_now
from novacron_security_threats._settings import MODEL_FILE

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@click.group()
def threats() -> None:
    """Suspicions with their reasons, and who is shut out because of them."""


def _state(ctx: click.Context) -> ShellState:
    return ctx.find_object(ShellState) or ShellState()


def _register(state: ShellState) -> Register:
    return Register(state.config.node.state_dir)


@threats.command("list")
@click.pass_context
def list_threats(ctx: click.Context) -> None:
    """Show what was suspected, the newest last, and who is in quarantine."""
    state = _state(ctx)
    register = _register(state)
    alerts, shut = register.alerts(), register.quarantined(utc_now())
    if state.json:
        found = {
            "alerts": [as_json(one) for one in alerts],
            "quarantined": [as_json(one) for one in shut],
        }
        state.print_json(found)
        return
    rows: list[tuple[Any, ...]] = [
        (
            one.number,
            f"{one.time:%Y-%m-%d %H:%M:%S}",
            one.detector,
            one.identity or f"from {one.origin}",
            f"{one.score:.1f}" + (f" x{one.times}" if one.times > 1 else ""),
            "; ".join(one.reasons),
        )
        for one in alerts
    ]
    state.table("alerts", ("number", "time", "detector", "who", "score", "why"), rows)
    held = [
        (one.identity, one.by, f"{one.until:%Y-%m-%d %H:%M} UTC" if one.until else "", one.reason)
        for one in shut
    ]
    state.table("quarantine", ("identity", "by", "until", "why"), held)


@threats.command("show")
@click.argument("number", type=click.IntRange(1))
@click.pass_context
def show(ctx: click.Context, number: int) -> None:
    """Show one alert."""
    state = _state(ctx)
    one = as_json(_register(state).alert(number))
    state.show(one, "", ("what", "value"), list(one.items()))


@threats.command("quarantine")
@click.argument("identity")
@click.option("--for", "span", metavar="SPAN", help="For how long (30m, 12h, 7d); else until "
              "it is released.")  # fmt: skip
@click.option("--reason", default="", help="Why; whoever is refused reads it in the log.")
@click.pass_context
def quarantine(ctx: click.Context, identity: str, span: str | None, reason: str) -> None:
    """Shut a node or a subject out: its streams and its operations are refused at once."""
    state = _state(ctx)
    entry = _register(state).quarantine(
        identity,
        by=OPERATOR,
        reason=reason or "an operator said so",
        now=utc_now(),
        hold_s=_seconds(span) if span else None,
    )
    if state.json:
        state.print_json(as_json(entry))
    else:
        until = f"until {entry.until:%Y-%m-%d %H:%M} UTC" if entry.until else "until released"
        state.console.print(f"{identity} is in quarantine {until}", markup=False)


@threats.command("release")
@click.argument("identity")
@click.pass_context
def release(ctx: click.Context, identity: str) -> None:
    """Let an identity in again."""
    state = _state(ctx)
    _register(state).release(identity, utc_now())
    if state.json:
        state.print_json({"released": identity})
    else:
        state.console.print(f"{identity} is let in again", markup=False)


def _seconds(span: str) -> float:
    match = _SPAN.fullmatch(span.strip())
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"{span!r} is no span of time", hint="say 30m, 12h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


@threats.command("train")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--label", default="label", show_default=True, help="The column with the label.")
@click.option("--normal", default="normal", show_default=True,
              help="The label of ordinary records; every other one is a threat.")  # fmt: skip
@click.option("--drop", multiple=True, help="A column that is no input. Repeat it.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False),
              help="Where to; else where `score` finds it.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.pass_context
def train_command(
    ctx: click.Context,
    file: Path,
    label: str,
    normal: str,
    drop: tuple[str, ...],
    out: Path | None,
    seed: int,
) -> None:
    """Train the detector of records from a CSV file with labels."""
    from novacron_security_threats._detector import train
    from novacron_security_threats._records import read_table

    state = _state(ctx)
    table = read_table(file)
    labels = table.column(label)
    detector = train(
        table.without(label, *drop), labels, normal, seed=seed, origin=f"{file.name}, seed {seed}"
    )
    path = out or _model_path(state)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    detector.save(path)
    found = {
        "model": str(path),
        "records": len(labels),
        "ordinary": sum(one == normal for one in labels),
        "columns": len(detector.schema.columns),
        "bytes": path.stat().st_size,
        "threshold": detector.threshold(),
    }
    state.show(found, "", ("what", "value"), list(found.items()))


def _model_path(state: ShellState) -> Path:
    return _register(state).folder / MODEL_FILE


@threats.command("score")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--false-alarms", type=click.FloatRange(0, 0.5, min_open=True), default=0.03,
              show_default=True, help="The share of ordinary records to suspect.")  # fmt: skip
@click.option("--most", type=click.IntRange(1), default=20, show_default=True,
              help="Show so many with their reasons, the most suspicious first.")  # fmt: skip
@click.pass_context
def score(
    ctx: click.Context, file: Path, model: Path | None, false_alarms: float, most: int
) -> None:
    """Judge the records of a CSV file by the trained detector."""
    from novacron_security_threats._detector import Detector
    from novacron_security_threats._records import read_table

    state = _state(ctx)
    detector = Detector.load(model or _model_path(state))
    table = read_table(file)
    scores = detector.scores(table)
    beyond = scores > detector.threshold(false_alarms)
    worst = [int(place) for place in (-scores).argsort()[:most] if beyond[place]]
    told = {place: detector.explain(table, place, false_alarms=false_alarms) for place in worst}
    found = {
        "records": len(scores),
        "threats": int(beyond.sum()),
        "worst": [
            {
                "record": place + 1,
                "score": round(one.score, 3),
                "known": round(one.known, 3),
                "novel": round(one.novel, 3),
                "reasons": list(one.reasons),
            }
            for place, one in told.items()
        ],
    }
    rows = [
        (place + 1, f"{one.score:.2f}", f"{one.known:.2f}", f"{one.novel:.1f}",
         "; ".join(one.reasons))
        for place, one in told.items()
    ]  # fmt: skip
    title = f"{found['threats']} of {found['records']} records are suspicious"
    state.show(found, title, ("record", "score", "known", "novel", "why"), rows)
