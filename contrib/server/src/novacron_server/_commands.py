"""The commands that speak to the node of this host: machine, operation, migrate and node."""

from __future__ import annotations

import os
import select
import struct
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from socket import SO_PEERCRED, SOL_SOCKET
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import click
from click.shell_completion import CompletionItem
from novacron import Cancelled, ConfigError, NodeUnavailable, NovacronError, Refused

from novacron_server._client import Client, MoveWish
from novacron_server._settings import ApiSettings
from novacron_server._units import (
    parse_milliseconds,
    parse_rate,
    parse_size,
    plain_table,
    show_size,
)

if TYPE_CHECKING:
    from novacron import ShellState

P = ParamSpec("P")
R = TypeVar("R")
Json = dict[str, Any]
COMPLETION_TIMEOUT_S: Final = 1.0
MODES: Final = ("datacenter", "hybrid", "internet")


# What the commands share.


def _state(ctx: click.Context) -> ShellState:
    from novacron import ShellState

    return ctx.ensure_object(ShellState)


def _client(state: ShellState, timeout_s: float = 30.0) -> Client:
    settings: ApiSettings = state.config.sections["service.api"]
    return Client(settings.path(state.config.node.state_dir), timeout_s=timeout_s)


def _set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        _state(ctx).json = True


def _show(
    state: ShellState, value: Any, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """JSON, a table for people, or for whatever reads a pipe one line per row, never folded."""
    if state.json or state.console.is_terminal:
        state.show(value, title, columns, rows)
        return
    if title:
        click.echo(title)
    for line in plain_table(columns, rows):
        click.echo(line)


def command(
    group: click.Group, name: str
) -> Callable[[Callable[Concatenate[ShellState, Client, P], None]], click.Command]:
    """A command of a group that gets the shell's state and a client, and knows ``--json``."""

    def decorate(work: Callable[Concatenate[ShellState, Client, P], None]) -> click.Command:
        return group.command(name)(_speaks_to_node(work))

    return decorate


def _speaks_to_node(
    work: Callable[Concatenate[ShellState, Client, P], None],
) -> Callable[..., None]:
    @click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_json,
        help="Print JSON.",
    )
    @click.pass_context
    @wraps(work)
    def run(ctx: click.Context, /, *arguments: P.args, **named: P.kwargs) -> None:
        state = _state(ctx)
        with _client(state) as client:
            work(state, client, *arguments, **named)

    return run


def _complete(
    ask: Callable[[Client], list[tuple[str, str]]],
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Completion by asking the node; silent where none answers."""

    def complete(ctx: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
        try:
            with _client(_state(ctx), COMPLETION_TIMEOUT_S) as client:
                found = ask(client)
        except NovacronError:
            return []
        return [CompletionItem(name, help=text) for name, text in found if name.startswith(typed)]

    return complete


_machines = _complete(
    lambda client: [(machine["name"], machine["state"]) for machine in client.machines()]
)
_peers = _complete(
    lambda client: [
        *((peer["name"], peer["address"]) for peer in client.peers()),
        ("auto", "let placement choose"),
    ]
)
_operations = _complete(
    lambda client: [
        (operation["id"], f"{operation['kind']} {operation['machine']}: {operation['state']}")
        for operation in reversed(client.operations())
    ]
)
_running = _complete(
    lambda client: [
        (operation["id"], f"{operation['kind']} {operation['machine']}")
        for operation in client.operations(state="running")
    ]
)


def _drivers(ctx: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
    try:
        names = list(_state(ctx).manager.providers("machine"))
    except NovacronError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(typed)]


NAME = click.argument("name", shell_complete=_machines)
DETACH = click.option("--detach", is_flag=True, help="Do not wait for the operation to end.")


def _follow(state: ShellState, client: Client, operation: Mapping[str, Any], detach: bool) -> None:
    """Watch an operation to its end and say how it ended, unless the user goes first."""
    from novacron_server._watch import conclude, watch

    if detach:
        if state.json:
            state.print_json(operation)
        else:
            click.echo(operation["id"])
        return
    try:
        ended = watch(state, client, operation)
    except KeyboardInterrupt:
        _say_how_to_return(state, operation)
        return
    conclude(state, ended)


def _say_how_to_return(state: ShellState, operation: Mapping[str, Any]) -> None:
    click.echo(
        f"\nThe operation goes on without you.\n"
        f"  watch it:  novacron operation watch {operation['id']}\n"
        f"  cancel it: novacron operation cancel {operation['id']}",
        err=True,
    )
    if state.json:
        state.print_json(operation)


# machine


@click.group("machine")
def machine_group() -> None:
    """Make, look at, run and delete machines."""


def _setting(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {text!r:.80} is no key=value", hint="write it like --set port=80")
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path, value


def _settings(file: Path | None, given: Sequence[str]) -> Json:
    """The settings of a file, overridden by those of ``--set``."""
    settings: Json = {}
    if file is not None:
        try:
            settings = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} is not sound TOML: {error}", hint="correct it") from error
    for text in given:
        path, value = _setting(text)
        table = settings
        for part in path[:-1]:
            below = table.setdefault(part, {})
            if not isinstance(below, dict):
                raise ConfigError(f"--set {text!r:.80}: {part!r} is no table", hint="correct it")
            table = below
        table[path[-1]] = value
    return settings


def _the_driver(state: ShellState, driver: str | None) -> str:
    installed = list(state.manager.providers("machine"))
    if driver is not None:
        return driver
    if len(installed) == 1:
        return installed[0]
    raise ConfigError(
        "it is not said which driver makes the machine",
        hint=f"say --driver; installed: {', '.join(installed) or 'none'}",
    )


@command(machine_group, "create")
@click.argument("name")
@click.option("--driver", shell_complete=_drivers, help="What makes it; the only one if left out.")
@click.option("--memory", default="64MiB", show_default=True, help="What the guest may use.")
@click.option("--set", "given", multiple=True, metavar="KEY=VALUE", help="A setting of the driver.")
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A TOML file with settings of the driver.",
)
@click.option("--tenant", default="", help="Whose it is: others' memory is not compared with it.")
@click.option("--no-start", is_flag=True, help="Only make it.")
@DETACH
def machine_create(
    state: ShellState,
    client: Client,
    name: str,
    driver: str | None,
    memory: str,
    given: tuple[str, ...],
    file: Path | None,
    tenant: str,
    no_start: bool,
    detach: bool,
) -> None:
    """Make a machine and start it.

    A VALUE is read as TOML where it is TOML (5, true, "5", [1, 2]) and else as text; a KEY may
    be dotted.
    """
    operation = client.create(
        name,
        driver=_the_driver(state, driver),
        memory_bytes=parse_size(memory),
        settings=_settings(file, given),
        tenant=tenant,
        start=not no_start,
    )
    _follow(state, client, operation, detach)


@command(machine_group, "list")
def machine_list(state: ShellState, client: Client) -> None:
    """All machines of this node."""
    machines = client.machines()
    rows = [
        (
            machine["name"],
            machine["state"],
            machine["driver"],
            show_size(machine["memory_bytes"]),
            machine["owner"],
            machine["note"],
        )
        for machine in machines
    ]
    _show(state, machines, "", ("name", "state", "driver", "memory", "owner", "note"), rows)


def _rows(values: Mapping[str, Any], under: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _rows(value, f"{under}{key}.")
        elif isinstance(value, list):
            rows.append((under + key, ", ".join(str(item) for item in value)))
        elif value not in ({}, None, ""):
            rows.append((under + key, value))
    return rows


@command(machine_group, "show")
@NAME
def machine_show(state: ShellState, client: Client, name: str) -> None:
    """One machine, with its settings and what its driver says."""
    machine = client.machine(name)
    _show(state, machine, "", ("what", "value"), _rows(machine))


@command(machine_group, "start")
@NAME
@DETACH
def machine_start(state: ShellState, client: Client, name: str, detach: bool) -> None:
    """Start a stopped machine with empty memory."""
    _follow(state, client, client.start(name), detach)


@command(machine_group, "stop")
@NAME
@DETACH
def machine_stop(state: ShellState, client: Client, name: str, detach: bool) -> None:
    """End a machine's process; its memory is gone."""
    _follow(state, client, client.stop(name), detach)


@command(machine_group, "pause")
@NAME
@DETACH
def machine_pause(state: ShellState, client: Client, name: str, detach: bool) -> None:
    """Stop a running machine between two instructions; its memory stays."""
    _follow(state, client, client.pause(name), detach)


@command(machine_group, "resume")
@NAME
@DETACH
def machine_resume(state: ShellState, client: Client, name: str, detach: bool) -> None:
    """Let a paused machine go on."""
    _follow(state, client, client.resume(name), detach)


@command(machine_group, "delete")
@NAME
@click.option("--force", is_flag=True, help="Also what this node must not run any more.")
@DETACH
def machine_delete(state: ShellState, client: Client, name: str, force: bool, detach: bool) -> None:
    """End a machine and remove it with all its files."""
    _follow(state, client, client.delete(name, force=force), detach)


@command(machine_group, "console")
@NAME
@click.option("--log", is_flag=True, help="Only print the end of what it has printed.")
@click.option(
    "--linger",
    default="1s",
    show_default=True,
    help="From a pipe: show it for so long after the pipe's end.",
)
def machine_console(state: ShellState, client: Client, name: str, log: bool, linger: str) -> None:
    """Attach the terminal to a machine's console; Ctrl-] leaves it.

    With a pipe as standard input, its bytes are typed in and what the console prints is shown
    until a moment after the pipe's end.
    """
    if log:
        sys.stdout.buffer.write(client.console_log(name))
        sys.stdout.buffer.flush()
        return
    from novacron_server import _console

    linger_s = parse_milliseconds(linger) / 1000
    with _console.open_console(client, name) as link:
        if _console.interactive():
            click.echo(f"The console of {name}; Ctrl-] leaves it.", err=True)
        sys.stdout.flush()
        why = _console.attach(link, linger_s=linger_s, stdin=0, stdout=1)
    if _console.interactive():
        click.echo(f"\r\n{why}", err=True)


# migrate


@click.command("migrate")
@click.argument("machine", shell_complete=_machines)
@click.argument("target", shell_complete=_peers)
@click.option(
    "--plan",
    is_flag=True,
    help="Only say what would happen and all that stands in its way, each with its cure.",
)
@click.option(
    "--export",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --plan: write it into a file, as JSON.",
)
@click.option(
    "--max-downtime",
    metavar="DURATION",
    help="The longest pause that the guest may feel (300ms, 1s, 300); if left out, two and a half "
    "round trips and 100 ms.",
)
@click.option("--max-time", metavar="DURATION", help="Give up when it has taken so long (90s).")
@click.option("--max-bytes", metavar="SIZE", help="Give up when so much has been sent (500MiB).")
@click.option(
    "--throttle",
    is_flag=True,
    help="Slow the guest down if it writes faster than its memory leaves.",
)
@click.option("--rate", help="The most to send (100mbit, 10MB/s).")
@click.option("--mode", type=click.Choice(MODES), help="Which providers answer.")
@click.option(
    "--verify",
    type=click.Choice(("stream", "memory")),
    help="Compare all that was sent (the default), or the whole paused memory too.",
)
@click.option("--with-storage", is_flag=True, help="Its disks go along (--storage copy).")
@click.option(
    "--storage",
    type=click.Choice(("copy", "shared")),
    help="What becomes of its disks: they go along, or both nodes are shown to reach them.",
)
@click.option("--priority", type=int, help="Moves that share a link: higher goes first (0).")
@click.option("--deadline", metavar="DURATION", help="When it should be over (10m).")
@DETACH
@_speaks_to_node
def migrate(
    state: ShellState,
    client: Client,
    machine: str,
    target: str,
    plan: bool,
    export: Path | None,
    max_downtime: str | None,
    max_time: str | None,
    max_bytes: str | None,
    throttle: bool,
    rate: str | None,
    mode: str | None,
    verify: str | None,
    with_storage: bool,
    storage: str | None,
    priority: int | None,
    deadline: str | None,
    detach: bool,
) -> None:
    """Move a running MACHINE to the node TARGET ("auto" lets placement choose)."""
    wish: MoveWish = {
        "max_downtime_ms": parse_milliseconds(max_downtime) if max_downtime else None,
        "max_time_s": parse_milliseconds(max_time) / 1000 if max_time else None,
        "max_bytes": parse_size(max_bytes) if max_bytes else None,
        "slow_guest": throttle or None,
        "rate_bytes_per_s": parse_rate(rate) if rate else None,
        "mode": mode,
        "verify": verify,
        "storage": "copy" if with_storage and storage is None else storage,
        "priority": priority,
        "deadline_s": parse_milliseconds(deadline) / 1000 if deadline else None,
    }
    if plan:
        _show_plan(state, client.plan(machine, target, **wish), export)
        return
    if export is not None:
        raise ConfigError("--export goes with --plan", hint="add --plan; nothing was begun")
    _follow(state, client, client.migrate(machine, target, **wish), detach)


def _show_plan(state: ShellState, plan: Json, export: Path | None) -> None:
    """Print a plan, and end with the code of a refusal if it is one."""
    from novacron_server import _plan

    if export is not None:
        _plan.write(plan, export)
    _show(state, plan, _plan.title(plan), ("what", "value"), _plan.rows(plan))
    if not state.json:
        for line in _plan.obstacle_lines(plan):
            state.console.print(line, soft_wrap=True)
    if plan["blocked"]:
        click.get_current_context().exit(Refused.exit_code)


# operation


@click.group("operation")
def operation_group() -> None:
    """Look at, watch and cancel what changes the world."""


@command(operation_group, "list")
@click.option("--machine", shell_complete=_machines, help="Only those of a machine.")
@click.option(
    "--state",
    "in_state",
    type=click.Choice(["running", "succeeded", "failed", "cancelled", "interrupted"]),
    help="Only those in a state.",
)
def operation_list(
    state: ShellState, client: Client, machine: str | None, in_state: str | None
) -> None:
    """The operations that are kept, the oldest first."""
    operations = client.operations(machine=machine, state=in_state)
    rows = [
        (
            operation["id"],
            operation["kind"],
            operation["machine"],
            operation["state"],
            operation["phase"],
            operation["subject"],
            operation["began"],
        )
        for operation in operations
    ]
    columns = ("id", "kind", "machine", "state", "phase", "asked by", "began")
    _show(state, operations, "", columns, rows)


ID = click.argument("operation_id", metavar="ID", shell_complete=_operations)


@command(operation_group, "show")
@ID
def operation_show(state: ShellState, client: Client, operation_id: str) -> None:
    """One operation: what was asked, how far it is, how it ended."""
    operation = client.operation(operation_id)
    _show(state, operation, "", ("what", "value"), _rows(operation))


@command(operation_group, "watch")
@ID
def operation_watch(state: ShellState, client: Client, operation_id: str) -> None:
    """Show what an operation does until it has ended. With --json: one event per line."""
    if not state.json:
        _follow(state, client, client.operation(operation_id), detach=False)
        return
    import msgspec

    for event in client.events(operation_id):
        click.echo(msgspec.json.encode(event))


@command(operation_group, "cancel")
@click.argument("operation_id", metavar="ID", shell_complete=_running)
@DETACH
def operation_cancel(state: ShellState, client: Client, operation_id: str, detach: bool) -> None:
    """Ask an operation to stop, and wait until it has."""
    operation = client.cancel(operation_id)
    try:
        _follow(state, client, operation, detach)
    except Cancelled as cancelled:
        # That it was cancelled is what was asked for, and no failure here.
        if state.json:
            state.print_json(client.operation(operation_id))
        else:
            click.echo("; ".join(part for part in (cancelled.message, cancelled.truth) if part))


@command(operation_group, "adjust")
@click.argument("operation_id", metavar="ID", shell_complete=_running)
@click.option("--rate", help="The most to send from now on (100mbit, 10MB/s), or none.")
@click.option("--mode", type=click.Choice(MODES), help="Go on with its providers.")
def operation_adjust(
    state: ShellState, client: Client, operation_id: str, rate: str | None, mode: str | None
) -> None:
    """Change the rate limit or the mode of a migration under way."""
    limit = None if rate is None else 0 if rate == "none" else parse_rate(rate)
    operation = client.adjust(operation_id, rate_bytes_per_s=limit, mode=mode)
    _show(state, operation, "", ("what", "value"), _rows(operation["progress"]))


# node


@click.group("node")
def node_group() -> None:
    """Start, look at and stop the node of this host."""


@command(node_group, "status")
def node_status(state: ShellState, client: Client) -> None:
    """What the node of this host is and does."""
    status = client.node()
    _show(state, status, "", ("what", "value"), _rows(status))


@command(node_group, "peers")
def node_peers(state: ShellState, client: Client) -> None:
    """The other nodes, and whether they answer."""
    peers = client.peers()
    rows = [
        (
            peer["name"],
            peer["address"],
            "yes" if peer["reachable"] else f"no: {peer['error'] or ''}",
            "" if peer["round_trip_ms"] is None else f"{peer['round_trip_ms']:g} ms",
            "" if peer["free_memory_bytes"] is None else show_size(peer["free_memory_bytes"]),
            ", ".join(peer["drivers"]),
        )
        for peer in peers
    ]
    columns = ("name", "address", "answers", "round trip", "free memory", "drivers")
    _show(state, peers, "", columns, rows)


@command(node_group, "stop")
@click.option("--timeout", default="30s", show_default=True, help="How long to wait for its end.")
def node_stop(state: ShellState, client: Client, timeout: str) -> None:
    """End the node of this host and wait until it has ended; its machines go on."""
    limit_ms = parse_milliseconds(timeout)
    with client.console_socket() as sock:
        pid = struct.unpack("3i", sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))[0]
    process = os.pidfd_open(pid)
    try:
        client.stop_node()
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(limit_ms):
            raise NodeUnavailable(
                f"the node (process {pid}) has been asked to stop and has not ended yet",
                hint="wait, or look into its log",
                truth="its machines go on",
            )
    finally:
        os.close(process)
    if state.json:
        state.print_json({"stopped": True, "pid": pid})
    else:
        click.echo("the node has stopped; its machines go on")


def commands() -> list[click.Command]:
    """All commands of this package."""
    return [machine_group, migrate, operation_group, node_group]
