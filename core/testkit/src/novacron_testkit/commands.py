"""The commands that the testkit adds to ``novacron plugins``.

What they do is imported when they are run: this module is loaded by all of ``novacron``'s commands.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from novacron import DOMAINS, ShellState

if TYPE_CHECKING:
    from novacron_testkit.check import CheckReport


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
    from novacron_testkit.check import check_plugin

    state = ctx.find_object(ShellState) or ShellState()
    report = check_plugin(name, state.manager)
    if as_json or state.json:
        state.print_json(report.to_json())
    else:
        _show(state, report, only_failures=failures)
    if not report.ok:
        # The shell runs click without its own handling of exits.
        sys.exit(1)


@plugins.command()
@click.argument("domain", type=click.Choice(DOMAINS))
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print where it was written as JSON.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("."),
    help="The folder to put the package's folder into.",
)
@click.pass_context
def new(ctx: click.Context, domain: str, name: str, out: Path, as_json: bool) -> None:
    """Write a new plugin for DOMAIN whose provider is called NAME; it passes its contract."""
    from novacron_testkit.scaffold import new_plugin

    state = ctx.find_object(ShellState) or ShellState()
    folder = new_plugin(domain, name, out)
    if as_json or state.json:
        state.print_json({"folder": str(folder), "plugin": f"{domain}-{name}"})
        return
    click.echo(f"wrote {folder}")
    click.echo(f"next: pip install -e {folder} && novacron plugins check {domain}-{name}")


def _show(state: ShellState, report: CheckReport, *, only_failures: bool) -> None:
    from rich.markup import escape

    from novacron_testkit.check import FAILED, PASSED, SKIPPED

    colours = {PASSED: "green", FAILED: "red", SKIPPED: "yellow"}
    rows = [
        (
            result.subject,
            result.law,
            f"[{colours[result.outcome]}]{result.outcome}[/]",
            escape(result.why),
        )
        for result in report.results
        if result.outcome == FAILED or not only_failures
    ]
    if rows:
        state.table(f"plugin {report.plugin}", ("subject", "law", "outcome", "why"), rows)
    state.console.print(
        f"{report.count(PASSED)} passed, {report.count(FAILED)} failed, "
        f"{report.count(SKIPPED)} skipped"
    )


__all__ = ["check", "new", "plugins"]
