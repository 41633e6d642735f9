"""The commands that the testkit adds to ``novacron plugins``."""

from __future__ import annotations

import json
from pathlib import Path

import click
import novacron
from novacron import DOMAINS

from novacron_testkit.check import FAILED, PASSED, SKIPPED, CheckReport, Plugins, check_plugin
from novacron_testkit.scaffold import new_plugin


@click.group()
def plugins() -> None:
    """Look at plugins, check them and write new ones."""


@plugins.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--failures", is_flag=True, help="Show only the laws that are broken.")
@click.pass_context
def check(ctx: click.Context, name: str, as_json: bool, failures: bool) -> None:
    """Hold the installed plugin NAME to the contracts of its domains.

    Ends with 0 if it keeps all laws and with 1 if it breaks one.
    """
    report = check_plugin(name, _manager(ctx))
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        _show(report, only_failures=failures)
    ctx.exit(0 if report.ok else 1)


@plugins.command()
@click.argument("domain", type=click.Choice(DOMAINS))
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("."),
    help="The folder to put the package's folder into.",
)
def new(domain: str, name: str, out: Path) -> None:
    """Write a new plugin for DOMAIN whose provider is called NAME; it passes its contract."""
    folder = new_plugin(domain, name, out)
    click.echo(f"wrote {folder}")
    click.echo(f"next: pip install -e {folder} && novacron plugins check {domain}-{name}")


def _manager(ctx: click.Context) -> Plugins:
    """The shell's plugins; loaded anew where the command runs without the shell."""
    state = ctx.find_object(getattr(novacron, "ShellState", type(None)))
    manager = getattr(state, "manager", None)
    if manager is None:
        from novacron.loader import PluginManager

        manager = PluginManager.load()
    found: Plugins = manager
    return found


def _show(report: CheckReport, *, only_failures: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "subject", "law", "", "why", title=f"plugin {report.plugin}", title_justify="left"
    )
    colours = {PASSED: "green", FAILED: "red", SKIPPED: "yellow"}
    for result in report.results:
        if only_failures and result.outcome != FAILED:
            continue
        outcome = f"[{colours[result.outcome]}]{result.outcome}[/]"
        table.add_row(result.subject, result.law, outcome, _plain(result.why))
    console = Console()
    if table.row_count:
        console.print(table)
    console.print(
        f"{report.count(PASSED)} passed, {report.count(FAILED)} failed, "
        f"{report.count(SKIPPED)} skipped"
    )


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


__all__ = ["check", "new", "plugins"]
