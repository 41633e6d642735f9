"""The command line's shell: flags that all commands share, errors as people want them, and the
commands that plugins bring. It has hardly a command of its own."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import click
from attrs import define
from rich.console import Console
from rich.table import Table
from rich.text import Text

from novacron import config as configuration
from novacron.config import Config
from novacron.errors import Cancelled, ConfigError, NovacronError, PluginLoadError
from novacron.loader import PluginManager
from novacron.node import Node

JSON_FLAG: Final = "--json"


@define(slots=False, eq=False)
class ShellState:
    """What the flags said, and what follows from it, made when first asked for.

    Attributes:
        json: Print JSON and nothing else on standard output.
        strict: Refuse to go on if any plugin failed to load.
    """

    config_path: Path | None = None
    json: bool = False
    strict: bool = False
    profile: str = ""

    @cached_property
    def console(self) -> Console:
        return Console()

    @cached_property
    def err(self) -> Console:
        return Console(stderr=True)

    @cached_property
    def _sources(self) -> tuple[dict[str, Any], Path | None]:
        flags = {"node": {"profile": self.profile}} if self.profile else {}
        return configuration.read_sources(self.config_path, flags)

    @property
    def tables(self) -> dict[str, Any]:
        """File, environment and flags, merged and not yet checked."""
        return self._sources[0]

    @cached_property
    def manager(self) -> PluginManager:
        return configuration.load_plugins(self.tables, strict=self.strict)

    @cached_property
    def config(self) -> Config:
        """Raises ConfigError."""
        return configuration.check(self.tables, self.manager, self._sources[1])

    def print_json(self, value: Any) -> None:
        click.echo(json.dumps(value, indent=2, default=str))

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print rows for people to look at; a cell may be rich's Text, for colour."""
        table = Table(title=title or None, title_justify="left", header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            cells = [
                cell if isinstance(cell, Text) else Text("" if cell is None else str(cell))
                for cell in row
            ]
            table.add_row(*cells)
        self.console.print(table)

    def show(self, value: Any, title: str, columns: Sequence[str], rows: Iterable[Any]) -> None:
        """JSON of the value or a table of the rows, as the flags say."""
        if self.json:
            self.print_json(value)
        else:
            self.table(title, columns, rows)


class Shell(click.Group):
    """The root group: the kernel's commands and those of the plugins, merged by name."""

    _all: dict[str, click.Command] | None = None

    def _extended(self, ctx: click.Context) -> dict[str, click.Command]:
        if self._all is not None:
            return self._all
        state = ctx.ensure_object(ShellState)
        state.config_path = ctx.params.get("config", state.config_path)
        state.profile = ctx.params.get("profile") or state.profile
        commands = dict(self.commands)
        try:
            manager = state.manager
        except NovacronError as broken:
            # A broken file must not hide the command that would show what is wrong with it.
            if ctx.resilient_parsing or isinstance(broken, PluginLoadError):
                return commands
            manager = PluginManager.load()
        for plugin, offered, error in manager.call("novacron_register_commands"):
            if error is None and not _are_commands(offered):
                error = TypeError(f"{offered!r} is no list of commands")
            if error is not None:
                text = f"the commands of plugin {plugin!r} failed: {error}"
                state.err.print(text, markup=False)
                continue
            for command in offered or ():
                _merge(commands, command, plugin, state)
        for command in commands.values():
            _accept_json(command)
        self._all = commands
        return commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._extended(ctx))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._extended(ctx).get(cmd_name)


def _are_commands(offered: object) -> bool:
    return offered is None or (
        isinstance(offered, Sequence) and all(isinstance(one, click.Command) for one in offered)
    )


def _accept_json(command: click.Command) -> None:
    """Let the flag stand behind each command, too; `main` has seen it already."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _accept_json(below)
    elif not any(JSON_FLAG in parameter.opts for parameter in command.params):
        command.params.append(
            click.Option([JSON_FLAG], is_flag=True, expose_value=False, help="Print JSON.")
        )


def _merge(
    commands: dict[str, click.Command], command: click.Command, plugin: str, state: ShellState
) -> None:
    name = command.name or ""
    present = commands.get(name)
    if present is None:
        commands[name] = command
    elif isinstance(present, click.Group) and isinstance(command, click.Group):
        both = {**command.commands, **present.commands}
        commands[name] = click.Group(name, commands=both, help=present.help or command.help)
    else:
        state.err.print(f"the command {name!r} of plugin {plugin!r} clashes with another one")


@click.group(cls=Shell, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), help="The configuration file.")
@click.option("--profile", help="The profile to use in place of the file's.")
@click.option(JSON_FLAG, "as_json", is_flag=True, help="Print JSON.")
@click.option("--strict", is_flag=True, help="Refuse if any plugin fails to load.")
@click.version_option(package_name="novacron")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, profile: str, as_json: bool, strict: bool) -> None:
    """Move running machines between sites, and run the fleet they move between."""
    state = ctx.ensure_object(ShellState)
    state.config_path, state.profile = config, profile or ""
    state.json, state.strict = state.json or as_json, strict
    if strict:
        _ = state.manager


@cli.group("node")
def node_group() -> None:
    """Start, look at and stop the node of this host."""


@node_group.command("start")
@click.pass_obj
def node_start(state: ShellState) -> None:
    """Run the node in the foreground until it is stopped. Machines outlive it."""
    logging.basicConfig(
        level=state.config.node.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )

    async def serve() -> None:
        node = Node(state.config, state.manager)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, node.request_stop)
        await node.start()
        # What was loaded stays: the collector need not look through it again and again, with all
        # threads of a move waiting (a seventh of the time that Python code ran during one).
        gc.freeze()
        state.err.print(f"node {node.facts.name} listens on {node.listen_address}")
        try:
            await node.run()
        finally:
            await node.stop()

    asyncio.run(serve())


def report(error: NovacronError, *, as_json: bool) -> None:
    """An error on standard error: what happened, what is true now, what to do."""
    if as_json:
        click.echo(json.dumps({"error": error.to_json()}, indent=2, default=str), err=True)
        return
    console = Console(stderr=True)
    console.print(f"[bold red]error[/] ({error.code}): ", end="")
    console.print(error.message, markup=False)
    for label, text in (("now", error.truth), ("hint", error.hint)):
        if text:
            console.print(f"[bold]{label}[/]: ", end="")
            console.print(text, markup=False)


def main() -> None:
    """The entry point ``novacron``. Exit codes: see `novacron.errors`; 2 for wrong usage."""
    state = ShellState(json=JSON_FLAG in sys.argv[1:])
    try:
        code = cli.main(obj=state, standalone_mode=False)
        if isinstance(code, int):  # what a command gave to ctx.exit
            sys.exit(code)
    except NovacronError as error:
        report(error, as_json=state.json)
        sys.exit(error.exit_code)
    except OSError as error:
        report(NovacronError(str(error), hint="repair what the message names"), as_json=state.json)
        sys.exit(NovacronError.exit_code)
    except click.ClickException as wrong:
        if state.json:
            report(ConfigError(wrong.format_message(), hint="see --help"), as_json=True)
        else:
            wrong.show()
        sys.exit(wrong.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(Cancelled.exit_code)
