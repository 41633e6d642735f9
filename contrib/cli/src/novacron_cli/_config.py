"""``novacron config show|validate`` and ``novacron profile list|show|use``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import attrs
import click
import tomlkit
from novacron import Config, ConfigError, NotFound, Profile, ShellState


def _plain(value: Any) -> Any:
    """What JSON and TOML can hold of a settings object."""
    if attrs.has(type(value)):
        return {key: _plain(below) for key, below in attrs.asdict(value, recurse=False).items()}
    if isinstance(value, dict):
        return {str(key): _plain(below) for key, below in value.items() if below is not None}
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    return str(value) if isinstance(value, Path) else value


def _as_tables(config: Config) -> dict[str, Any]:
    tables: dict[str, Any] = {"node": _plain(config.node), "peers": _plain(dict(config.peers))}
    tables["modes"] = _plain({mode: dict(chosen) for mode, chosen in config.providers.items()})
    for section, settings in config.sections.items():
        table = tables
        *above, last = section.split(".")
        for name in above:
            table = table.setdefault(name, {})
        table[last] = _plain(settings)
    return tables


@click.group("config")
def config_group() -> None:
    """See and check the configuration."""


@config_group.command("show")
@click.pass_obj
def show(state: ShellState) -> None:
    """Print everything as the node would use it: profile, file, environment and flags merged."""
    tables = _as_tables(state.config)
    if state.json:
        state.print_json({"file": str(state.config.path or ""), **tables})
        return
    click.echo(f"# from {state.config.path or 'no file'}, profile {state.config.profile or 'none'}")
    click.echo(tomlkit.dumps({key: value for key, value in tables.items() if value != {}}))


@config_group.command("validate")
@click.pass_obj
def validate(state: ShellState) -> None:
    """Check the configuration against the plugins that are installed."""
    config = state.config
    verdict = {"file": str(config.path or ""), "valid": True, "node": config.node.name}
    if state.json:
        state.print_json(verdict)
    else:
        state.console.print(f"[green]sound[/]: {config.path or 'no file, only defaults'}")


@click.group("profile")
def profile_group() -> None:
    """Choose among named plugin sets with their settings."""


def _find(state: ShellState, name: str) -> Profile:
    profiles = state.config.profiles
    if name not in profiles:
        known = ", ".join(profiles) or "none"
        raise NotFound(f"there is no profile {name!r}", hint=f"known: {known}")
    return profiles[name]


@profile_group.command("list")
@click.pass_obj
def list_profiles(state: ShellState) -> None:
    """List the profiles; the one in use is marked."""
    rows = [
        {"name": name, "used": name == state.config.profile, "description": profile.description}
        for name, profile in state.config.profiles.items()
    ]
    lines = [(row["name"], "*" if row["used"] else "", row["description"]) for row in rows]
    state.show(rows, "Profiles", ("name", "used", "description"), lines)


@profile_group.command("show")
@click.argument("name")
@click.pass_obj
def show_profile(state: ShellState, name: str) -> None:
    """Print what a profile sets."""
    value = _plain(_find(state, name))
    if state.json:
        state.print_json(value)
    else:
        click.echo(tomlkit.dumps({"profiles": {name: value}}))


@profile_group.command("use")
@click.argument("name")
@click.pass_obj
def use(state: ShellState, name: str) -> None:
    """Write the profile's name into the configuration file, for the next start of the node."""
    _find(state, name)
    path = state.config.path
    if path is None:
        raise ConfigError(
            "there is no configuration file to write to", hint="name it with --config"
        )
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    node = document.setdefault("node", tomlkit.table())
    node["profile"] = name
    _replace(path, tomlkit.dumps(document))
    if state.json:
        state.print_json({"profile": name, "file": str(path)})
    else:
        state.console.print(f"{path} now uses the profile {name}")


def _replace(path: Path, text: str) -> None:
    """The old file or the new one, whatever happens; its mode stays."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as fresh:
        fresh.write(text)
        fresh.flush()
        os.fsync(fresh.fileno())
    os.chmod(fresh.name, path.stat().st_mode & 0o777)
    os.replace(fresh.name, path)
