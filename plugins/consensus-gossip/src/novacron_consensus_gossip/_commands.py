"""``novacron gossip``: who is there, and the cluster's keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from novacron import Conflict, NodeUnavailable, NotFound, ShellState
from novacron_agreement.control import ask

from novacron_consensus_gossip._bench_command import bench
from novacron_consensus_gossip._seal import Key

if TYPE_CHECKING:
    from novacron_consensus_gossip._driver import MemberSetup

ANSWER_S: Final = 5.0
_KEYS_OPTION: Final = click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of keys, if it is not the one of this host's node.",
)


@click.group("gossip")
def gossip() -> None:
    """See which nodes are there, as this host's node knows by gossip."""


def commands() -> Sequence[click.Command]:
    return [gossip, bench]


def _ask(state: ShellState, question: bytes, timeout_s: float | None) -> Iterator[Any]:
    """The lines of this node's answer. Raises NodeUnavailable."""
    # The service's settings and its event loop are not needed to ask it.
    path = state.config.node.state_dir / "service-gossip" / "gossip.sock"
    try:
        for line in ask(path, question, timeout_s):
            yield json.loads(line)
    except OSError as error:
        raise NodeUnavailable(
            f"no node that gossips answers at {path}: {error}",
            hint="[service.gossip] enabled = true, then `novacron node start`",
        ) from error


def _answer(state: ShellState, question: bytes) -> Any:
    for answer in _ask(state, question, ANSWER_S):
        return answer
    raise NodeUnavailable("the node ended in the midst of its answer", hint="see its log")


@gossip.command()
@click.pass_obj
def status(state: ShellState) -> None:
    """Show this node's own part: its health, its keys, what it refused."""
    told = _answer(state, b"status")
    rows = [
        (key, json.dumps(value) if isinstance(value, dict | list) else value)
        for key, value in told.items()
    ]
    state.show(told, "gossip", ("what", "value"), rows)


@gossip.command()
@click.option("--state", "wanted", help="Only those in this state: alive, suspect, dead or left.")
@click.pass_obj
def members(state: ShellState, wanted: str | None) -> None:
    """List the members of the cluster and what is held of each."""
    told = sorted(_answer(state, b"members"), key=lambda one: str(one["name"]))
    if wanted is not None:
        told = [one for one in told if one["state"] == wanted]
    rows = [
        (
            one["name"],
            one["state"],
            one["address"],
            f"{one['for_s']:.0f} s",
            "" if one["round_trip_ms"] is None else f"{one['round_trip_ms']} ms",
            " ".join(f"{key}={value}" for key, value in sorted(one["tags"].items())),
        )
        for one in told
    ]
    state.show(told, "members", ("name", "state", "address", "for", "round trip", "tags"), rows)


@gossip.command()
@click.pass_obj
def watch(state: ShellState) -> None:
    """Show all members, then each change as it becomes known, until interrupted."""
    for one in _ask(state, b"watch", None):
        if state.json:
            click.echo(json.dumps(one))
        else:
            click.echo(f"{one['name']} {one['state']} {one['address']} {one['incarnation']}")


@gossip.group()
def keys() -> None:
    """Make and change the keys of the cluster.

    To change a key without a pause: `add` on one node and copy the file to all; `use` the new key
    on each; then `remove` the old one on each. Nodes notice within seconds.
    """


def _path(state: ShellState, path: Path | None) -> Path:
    if path is not None:
        return path
    node = state.config.node
    setup: MemberSetup = state.config.sections["service.gossip"].setup(node.name, node.state_dir)
    return setup.keys


def _show_keys(state: ShellState, path: Path, found: Sequence[Key]) -> None:
    told = [
        {"id": key.id.hex(), "use": "open" if number else "seal and open"}
        for number, key in enumerate(found)
    ]
    rows = [(one["id"], one["use"]) for one in told]
    state.show({"file": str(path), "keys": told}, str(path), ("key", "used to"), rows)


@keys.command("new")
@_KEYS_OPTION
@click.pass_obj
def keys_new(state: ShellState, path: Path | None) -> None:
    """Make the first key of a new cluster. A file that is there is left alone."""
    from novacron_consensus_gossip import _keyring

    path = _path(state, path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = (_keyring.new_key(),)
    try:
        _keyring.write(path, made, fresh=True)
    except FileExistsError as error:
        raise Conflict(
            str(error), hint="`novacron gossip keys add` adds a key to it", truth="nothing changed"
        ) from error
    _show_keys(state, path, made)


@keys.command("list")
@_KEYS_OPTION
@click.pass_obj
def keys_list(state: ShellState, path: Path | None) -> None:
    """Show which keys there are, by their ids."""
    from novacron_consensus_gossip import _keyring

    path = _path(state, path)
    _show_keys(state, path, _keyring.read(path))


@keys.command("add")
@_KEYS_OPTION
@click.pass_obj
def keys_add(state: ShellState, path: Path | None) -> None:
    """Add a fresh key that opens, and does not seal yet."""
    from novacron_consensus_gossip import _keyring

    path = _path(state, path)
    found = (*_keyring.read(path), _keyring.new_key())
    _keyring.write(path, found)
    _show_keys(state, path, found)


def _find(found: Sequence[Key], key_id: str, path: Path) -> Key:
    for key in found:
        if key.id.hex() == key_id.lower():
            return key
    raise NotFound(
        f"{path} has no key {key_id!r:.40}", hint="`novacron gossip keys list` shows the ids"
    )


@keys.command("use")
@click.argument("key_id", metavar="ID")
@_KEYS_OPTION
@click.pass_obj
def keys_use(state: ShellState, key_id: str, path: Path | None) -> None:
    """Seal with this key from now on. All nodes must have it already."""
    from novacron_consensus_gossip import _keyring

    path = _path(state, path)
    found = _keyring.read(path)
    first = _find(found, key_id, path)
    found = (first, *(key for key in found if key != first))
    _keyring.write(path, found)
    _show_keys(state, path, found)


@keys.command("remove")
@click.argument("key_id", metavar="ID")
@_KEYS_OPTION
@click.pass_obj
def keys_remove(state: ShellState, key_id: str, path: Path | None) -> None:
    """Remove a key. What nodes seal with it is refused from now on."""
    from novacron_consensus_gossip import _keyring

    path = _path(state, path)
    found = _keyring.read(path)
    old = _find(found, key_id, path)
    if found[0] == old:
        raise Conflict(
            f"key {key_id} is the one that seals",
            hint="`novacron gossip keys use` another one first, on all nodes",
            truth="nothing changed",
        )
    found = tuple(key for key in found if key != old)
    _keyring.write(path, found)
    _show_keys(state, path, found)
