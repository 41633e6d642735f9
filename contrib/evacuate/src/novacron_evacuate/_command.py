"""``novacron evacuate``: asks the node of this host, draws its plan, and follows it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from novacron import ConfigError, NovacronError, OperationEvent
from novacron_server import ApiSettings, Client
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from novacron_evacuate import _draw as draw

if TYPE_CHECKING:
    from novacron import ShellState

Json = dict[str, Any]
KIND: Final = "evacuate"
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?")
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


def parse_seconds(text: str) -> float:
    """``90s``, ``15m``, ``2h``, or plain seconds. Raises ConfigError."""
    found = _DURATION.fullmatch(text.strip().lower())
    seconds = float(found[1]) * _SECONDS[found[2] or ""] if found else 0.0
    if not 0 < seconds <= 30 * 86_400:
        raise ConfigError(f"{text!r:.60} is no duration", hint="write it like 90s, 15m or 2h")
    return seconds


@click.command(KIND)
@click.argument("place")
@click.option("--to", multiple=True, metavar="NODE", help="Only to these nodes, or these sites.")
@click.option("--exclude", multiple=True, metavar="NODE", help="Not to these nodes or sites.")
@click.option("--deadline", metavar="DURATION", help="When it must be over (90s, 15m, 2h).")
@click.option("--throttle", is_flag=True, help="Guests that write too fast may be slowed down.")
@click.option("--plan", "plan_only", is_flag=True, help="Only show the plan.")
@click.option(
    "--svg",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="With --plan: draw it into a file, too.",
)
@click.option("--detach", is_flag=True, help="Do not wait for the end.")
@click.pass_context
def evacuate(
    ctx: click.Context,
    place: str,
    to: tuple[str, ...],
    exclude: tuple[str, ...],
    deadline: str | None,
    throttle: bool,
    plan_only: bool,
    svg: Path | None,
    detach: bool,
) -> None:
    """Move all machines of PLACE, a node or a site, to other nodes, by a plan.

    The plan says who goes where, in which order, how many at once, and when each will have
    arrived; it is made anew when links change, targets vanish or moves fail.
    """
    from novacron import ShellState

    state = ctx.ensure_object(ShellState)
    if svg is not None and not plan_only:
        raise ConfigError("--svg draws a plan", hint="say --plan, too")
    settings: ApiSettings = state.config.sections["service.api"]
    wish: Json = {"place": place, "to": list(to), "exclude": list(exclude)}
    wish |= {"slow_guest": throttle, "plan_only": plan_only}
    if deadline:
        wish["deadline_s"] = parse_seconds(deadline)
    with Client(settings.path(state.config.node.state_dir)) as client:
        operation = client.begin(KIND, client.node()["node"], wish)
        if detach:
            if state.json:
                state.print_json(operation)
            else:
                click.echo(operation["id"])
            return
        try:
            ended = _follow(state, client, operation, quiet=plan_only)
        except KeyboardInterrupt:
            click.echo(
                "\nThe evacuation goes on without you.\n"
                f"  watch it:  novacron operation watch {operation['id']}\n"
                f"  cancel it: novacron operation cancel {operation['id']}",
                err=True,
            )
            return
    if ended["error"]:
        raise _error(ended)
    if plan_only:
        _show_plans(state, ended["result"], place, svg)
    else:
        _show_result(state, ended["result"], place)


def _error(ended: Json) -> NovacronError:
    from novacron_server._problems import from_problem

    error = from_problem(ended["error"])
    error.facts.setdefault("operation", ended["id"])
    return error


# The plan.


def _show_plans(state: ShellState, result: Json, place: str, svg: Path | None) -> None:
    plans: Mapping[str, Json] = result.get("plans") or {place: result["plan"]}
    if svg is not None:
        for node, plan in plans.items():
            path = svg if len(plans) == 1 else svg.with_name(f"{svg.stem}-{node}{svg.suffix}")
            path.write_text(draw.svg(plan, f"Evacuation of {node}"), encoding="utf-8")
    if state.json:
        state.print_json(result)
        return
    for node, plan in plans.items():
        if len(plans) > 1:
            state.console.print(Text(node, "bold"))
        state.console.print(draw.picture(plan))
    for node, reason in (result.get("failed") or {}).items():
        state.console.print(Text(f"{node}: {reason}", "red"))


# The run.


class _View:
    """The live picture: the plan as it is now, and what has been said last."""

    def __init__(self) -> None:
        self.progress: Json = {}
        self.said: list[str] = []

    def take(self, event: OperationEvent) -> None:
        if event.kind == "progress":
            self.progress = dict(event.data)
        elif event.kind == "message":
            self.said = [*self.said, str(event.data.get("text", ""))][-4:]

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [Text(line, "bold") for line in _lines(self.progress)]
        plan = self.progress.get("plan")
        if plan and plan["moves"]:
            parts.append(draw.gantt(plan))
        parts += [Text(text, "yellow") for text in self.said]
        return Group(*parts)


def _lines(progress: Mapping[str, Any]) -> list[str]:
    """How far it is; a line per node where it is a site."""
    nodes = progress.get("nodes")
    if nodes:
        return [f"{name}: {line}" for name, each in nodes.items() for line in _lines(each)]
    if "moved" not in progress:
        return []
    moving = progress.get("moving") or {}
    line = f"{progress['moved']} of {progress['machines']} have moved, {len(moving)} are moving"
    if progress.get("eta_s") is not None:
        line += (
            f", {draw.duration(progress['eta_s'])} left ({draw.duration(progress['eta_low_s'])} to "
            f"{draw.duration(progress['eta_high_s'])})"
        )
    return [line]


def _follow(state: ShellState, client: Client, operation: Json, *, quiet: bool) -> Json:
    view = _View()
    with ExitStack() as stack:
        live = state.console.is_terminal and not state.json and not quiet
        if live:
            stack.enter_context(
                Live(view, console=state.console, refresh_per_second=4, transient=True)
            )
        for event in client.events(operation["id"]):
            view.take(event)
            if event.kind == "message" and not (live or quiet or state.json):
                state.console.print(escape(view.said[-1]), soft_wrap=True)
    return client.operation(operation["id"])


def _show_result(state: ShellState, result: Json, place: str) -> None:
    if state.json:
        state.print_json(result)
        return
    rows = sorted((result.get("moved") or {}).items())
    state.table(f"{place} is empty", ("machine", "runs on"), rows)
    if "seconds" in result:
        took = draw.duration(result["seconds"])
        state.console.print(f"{len(rows)} machines in {took}, {result['plans']} plans followed")
