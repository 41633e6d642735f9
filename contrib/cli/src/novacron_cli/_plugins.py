"""``novacron plugins list|show|trace``."""

from __future__ import annotations

import inspect
from typing import Any

import click
from novacron import DOMAINS, NotFound, ShellState


def _offers(state: ShellState, plugin: str) -> list[str]:
    manager = state.manager
    return [
        f"{domain} {name}"
        for domain in (*DOMAINS, "service")
        for name in manager.providers(domain)
        if manager.offered_by(domain, name) == plugin
    ]


@click.group("plugins")
def plugins_group() -> None:
    """See which plugins are installed and what they do."""


@plugins_group.command("list")
@click.pass_obj
def list_plugins(state: ShellState) -> None:
    """List the installed plugins, and those that failed with the cause and the cure."""
    manager = state.manager
    loaded = [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "offers": _offers(state, plugin.name),
            "hooks": list(plugin.hooks),
        }
        for plugin in manager.plugins.values()
    ]
    failed = [
        {
            "name": failure.name,
            "distribution": failure.distribution,
            "cause": failure.cause,
            "cure": failure.cure,
        }
        for failure in manager.failures
    ]
    if state.json:
        state.print_json({"plugins": loaded, "failures": failed})
        return
    rows = [
        (row["name"], row["version"], ", ".join(row["offers"]) or f"{len(row['hooks'])} hooks")
        for row in loaded
    ]
    state.table("Plugins", ("name", "version", "offers"), rows)
    if failed:
        lines = [(row["name"], row["distribution"], row["cause"], row["cure"]) for row in failed]
        state.table("Not loaded", ("name", "distribution", "cause", "cure"), lines)


@plugins_group.command("show")
@click.argument("name")
@click.pass_obj
def show_plugin(state: ShellState, name: str) -> None:
    """Show what a plugin offers, which hooks it answers and which settings it has."""
    manager = state.manager
    plugin = manager.plugins.get(name)
    if plugin is None:
        failures = [failure for failure in manager.failures if failure.name == name]
        if failures:
            raise NotFound(f"it did not load: {failures[0].cause}", hint=failures[0].cure)
        raise NotFound(f"no plugin is called {name!r}", hint="see `novacron plugins list`")
    settings: dict[str, Any] = {}
    for section, cls in manager.settings_classes().items():
        domain, _, provider = section.partition(".")
        if provider and manager.offered_by(domain, provider) == name:
            settings[section] = inspect.getdoc(cls) or ""
    value = {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "about": inspect.getdoc(plugin.plugin) or "",
        "offers": _offers(state, name),
        "hooks": list(plugin.hooks),
        "settings": settings,
    }
    if state.json:
        state.print_json(value)
        return
    state.console.print(f"[bold]{plugin.name}[/] {plugin.version} ({plugin.distribution})\n")
    state.console.print(value["about"], markup=False)
    rows = [("offers", "\n".join(value["offers"])), ("hooks", "\n".join(plugin.hooks))]
    state.table("", ("", ""), rows)
    for section, text in settings.items():
        state.console.print(f"\n[bold]\\[{section}][/]")
        state.console.print(text, markup=False)


@plugins_group.command("trace", context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def trace(ctx: click.Context, command: tuple[str, ...]) -> None:
    """Run COMMAND and show each hook call with its time.

    For a node, set trace_hooks in [node]: then the log holds every call.
    """
    state: ShellState = ctx.obj
    manager = state.manager
    manager.trace = True
    root = ctx.find_root().command
    try:
        root.main(list(command), obj=state, standalone_mode=False, prog_name="novacron")
    finally:
        rows = [
            {
                "hook": hook,
                "plugin": plugin,
                "calls": timing.calls,
                "total_ms": round(timing.total_s * 1000, 3),
                "max_ms": round(timing.max_s * 1000, 3),
            }
            for (hook, plugin), timing in sorted(manager.timings.items())
        ]
        columns = ("hook", "plugin", "calls", "total_ms", "max_ms")
        if state.json:
            state.err.print_json(data=rows)
        else:
            state.table("Hook calls", columns, [tuple(row.values()) for row in rows])
