"""``novacron log``: read and check the operation log of a state folder, node running or not."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import click
import msgspec
from novacron import NotFound

from novacron_compliance_local import _chain
from novacron_compliance_local._log import FOLDER


def _default_state() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "novacron"


_state = click.option(
    "--state",
    envvar="NOVACRON_NODE__STATE_DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=_default_state,
    help="The node's state folder.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def log() -> None:
    """The record of operations on this node."""


@log.command("list")
@_state
@_json
@click.option("--after", type=click.IntRange(0), default=0, help="Only entries after this number.")
def list_entries(state: Path, as_json: bool, after: int) -> None:
    """Show the entries, oldest first."""
    entries = (entry for entry in _chain.read(_log_of(state)) if entry.sequence > after)
    if as_json:
        click.echo("[", nl=False)
        for index, entry in enumerate(entries):
            click.echo(("," if index else "") + _encoded(attrs.asdict(entry)), nl=False)
        click.echo("]")
        return
    for entry in entries:
        detail = _encoded(entry.detail) if entry.detail else ""
        click.echo(
            f"{entry.sequence:>6}  {entry.time}  {entry.node}  {entry.event:<9}  "
            f"{entry.operation}  {detail}".rstrip()
        )


@log.command("verify")
@_state
@_json
def verify_log(state: Path, as_json: bool) -> None:
    """Check the chain of digests from the first entry to the last acknowledged one."""
    path = _log_of(state)
    # The head first: entries that are added meanwhile then only make the log longer than it.
    try:
        head = _chain.Head.decode(path.with_name(_chain.HEAD_FILE).read_bytes()[:256])
    except FileNotFoundError:
        head = None
    last = _chain.verify(path, head)
    found = {"path": str(path), "entries": last.sequence, "digest": last.digest}
    if as_json:
        click.echo(_encoded(found))
    else:
        click.echo(f"{last.sequence} entries, all sound; the last digest is {last.digest}")


def _encoded(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _log_of(state: Path) -> Path:
    path = state / FOLDER / _chain.LOG_FILE
    if not path.is_file():
        raise NotFound(
            f"there is no operation log {path}",
            hint="name the node's state folder with --state; a node that never ran has no log",
            path=str(path),
        )
    return path
