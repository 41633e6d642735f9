"""``novacron state``: read, write and watch what all sites share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
from novacron import NodeUnavailable, NovacronError, Refused, ShellState
from novacron_agreement.control import ask

from novacron_consensus_state._bench_command import bench

MARGIN_S: Final = 5.0
LEVELS: Final = (
    ("eventual", "the answer of this node, at once", "kept on this node's disk; spreads by itself"),
    ("local", "sees all that the session has seen", "comes after all that the session has seen"),
    ("quorum", "sees every quorum write before it", "on the disks of a majority of members"),
    ("strong", "as if there were one copy", "as if there were one copy; --expect compares"),
)
_level_option = click.option(
    "--level",
    type=click.Choice([level[0] for level in LEVELS]),
    default="eventual",
    show_default=True,
    help="What it promises; see `novacron state levels`.",
)
_session_option = click.option(
    "--session",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file that holds the session's token; made and renewed. For the level local.",
)
_timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 600),
    default=5.0,
    show_default=True,
    help="Seconds to wait for other members.",
)


@click.group("state")
def state_group() -> None:
    """Read, write and watch what all sites share."""


def commands() -> Sequence[click.Command]:
    return [state_group, bench]


def _ask(state: ShellState, request: dict[str, Any], timeout_s: float | None) -> Iterator[Any]:
    """The lines of this node's answer. Raises NodeUnavailable, or what the node refused."""
    path = state.config.node.state_dir / "service-state" / "state.sock"
    try:
        for line in ask(path, json.dumps(request).encode(), timeout_s):
            yield _checked(json.loads(line))
    except OSError as error:
        raise NodeUnavailable(
            f"no node that keeps state answers at {path}: {error}",
            hint="[service.state] enabled = true with its members, then `novacron node start`",
        ) from error


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    error = answer.get("error")
    if error is None:
        return answer
    kind = Refused if error["code"] == "state" else NovacronError
    raise kind(error["message"], hint=error["hint"], truth=error["truth"], **error["facts"])


def _one(state: ShellState, request: dict[str, Any], timeout_s: float = 0.0) -> dict[str, Any]:
    for answer in _ask(state, request, timeout_s + MARGIN_S):
        return dict(answer)
    raise NodeUnavailable("the node ended in the midst of its answer", hint="see its log")


def _token(session: Path | None) -> str:
    return session.read_text().strip() if session is not None and session.exists() else ""


def _keep(session: Path | None, token: str) -> None:
    if session is not None:
        session.write_text(token + "\n")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@state_group.command()
@click.argument("name")
@click.option("--type", "kind", default="", help="The key's type; found by its name if not given.")
@_level_option
@_session_option
@click.option(
    "--max-staleness",
    "max_staleness_s",
    type=click.FloatRange(0),
    help="Refuse unless all that was written so many seconds ago, anywhere, is seen.",
)
@_timeout_option
@click.pass_obj
def get(
    state: ShellState,
    name: str,
    kind: str,
    level: str,
    session: Path | None,
    max_staleness_s: float | None,
    timeout_s: float,
) -> None:
    """Read the key NAME."""
    request = {
        "do": "read",
        "name": name,
        "kind": kind,
        "level": level,
        "token": _token(session),
        "max_staleness_s": max_staleness_s,
        "timeout_s": timeout_s,
    }
    told = _one(state, request, timeout_s)
    for one in told["kinds"].values():
        _keep(session, one["token"])
    if state.json:
        state.print_json(told)
        return
    for found, one in told["kinds"].items():
        age = "unknown" if one["age_ms"] is None else f"{one['age_ms'] / 1000:g} s"
        click.echo(json.dumps(one["value"], ensure_ascii=False))
        version = f", version {one['version']}" if one["version"] else ""
        state.err.print(f"{found}, level {one['level']}, at most {age} old{version}", style="dim")


@state_group.command("set", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("kind", metavar="TYPE")
@click.argument("operation")
@click.argument("values", nargs=-1)
@_level_option
@_session_option
@click.option("--expect", "expected", type=int, help="At strong: the version that must hold.")
@_timeout_option
@click.pass_obj
def set_(
    state: ShellState,
    name: str,
    kind: str,
    operation: str,
    values: tuple[str, ...],
    level: str,
    session: Path | None,
    expected: int | None,
    timeout_s: float,
) -> None:
    """Do OPERATION with VALUES on the key NAME of TYPE, such as `set motd lww set hello`.

    Values are JSON, and text where they are not. See `novacron state levels` for all types.
    """
    request = {
        "do": "write",
        "name": name,
        "kind": kind,
        "operation": operation,
        "values": [_value(text) for text in values],
        "level": level,
        "token": _token(session),
        "expected": expected,
        "timeout_s": timeout_s,
    }
    told = _one(state, request, timeout_s)
    _keep(session, told["token"])
    if state.json:
        state.print_json(told)
    elif told["version"]:
        click.echo(f"version {told['version']}")


@state_group.command()
@click.argument("name")
@click.pass_obj
def watch(state: ShellState, name: str) -> None:
    """Show the key NAME now and whenever it changes; NAME* for all that begin so."""
    for told in _ask(state, {"do": "watch", "name": name}, None):
        if state.json:
            click.echo(json.dumps(told))
        else:
            value = json.dumps(told["value"], ensure_ascii=False)
            click.echo(f"{told['name']} {told['kind']} {value}")


@state_group.command()
@click.pass_obj
def levels(state: ShellState) -> None:
    """Explain levels, types and operations, and show how fresh this node's picture is."""
    from novacron_consensus_state._kinds import operations

    try:
        peers = _one(state, {"do": "status"})["peers"]
    except NodeUnavailable:
        peers = {}  # the explanation needs no node
    if state.json:
        told = [dict(zip(("level", "read", "write"), level, strict=True)) for level in LEVELS]
        state.print_json({"levels": told, "types": operations(), "members": peers})
        return
    state.table("levels", ("level", "a read", "a write"), LEVELS)
    rows = [(kind, ", ".join(names)) for kind, names in operations().items()]
    state.table("types", ("type", "operations"), rows)
    if peers:
        _show_peers(state, peers)


def _show_peers(state: ShellState, peers: dict[str, Any]) -> None:
    rows = [
        (
            name,
            one["region"],
            "never" if one["heard_ms"] is None else f"{one['heard_ms']} ms ago",
            f"{one['round_trip_ms']} ms",
            "unknown" if one["age_ms"] is None else f"{one['age_ms']} ms",
            one["events_we_lack"],
            one["events_it_lacks"],
        )
        for name, one in sorted(peers.items())
    ]
    columns = ("member", "region", "heard", "round trip", "at most old", "we lack", "it lacks")
    state.table("members", columns, rows)


@state_group.command()
@click.pass_obj
def status(state: ShellState) -> None:
    """Show what this node keeps, how far it is, and what it noticed."""
    told = _one(state, {"do": "status"})
    if state.json:
        state.print_json(told)
        return
    rows = [
        (key, json.dumps(value) if isinstance(value, dict | list) else value)
        for key, value in told.items()
        if key not in ("peers", "notes")
    ]
    state.table("state", ("what", "value"), rows)
    _show_peers(state, told["peers"])


@state_group.command()
@click.pass_obj
def metrics(state: ShellState) -> None:
    """Print this node's figures in Prometheus' text format: staleness by member and key range."""
    click.echo(_one(state, {"do": "metrics"})["text"], nl=False)
