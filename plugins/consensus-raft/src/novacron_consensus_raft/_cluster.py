"""``novacron cluster``: begin, join, look at, change, save and restore the cluster of this node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from novacron import ShellState

from novacron_consensus_raft._control import call

_HINT = "Each node needs `novacron node start` first."


def _ask(state: ShellState, **request: Any) -> Any:
    return call(state.config.node.state_dir, **request)


def _say(state: ShellState, value: Any, text: str) -> None:
    if state.json:
        state.print_json(value)
    else:
        state.console.print(text, markup=False)


@click.group("cluster", epilog=_HINT)
def cluster() -> None:
    """The raft cluster that decides who owns a machine."""


@cluster.command("init")
@click.option("--member", "members", multiple=True, help="A first member; repeat it for each.")
@click.pass_obj
def init(state: ShellState, members: tuple[str, ...]) -> None:
    """Begin a cluster. Run it once on each of its first members, with the same names.

    Without --member they are those of [consensus.raft] members, or this node alone.
    """
    done = _ask(state, do="init", members=list(members))
    names = done["members"]
    _say(
        state,
        done,
        f"This node begins a cluster with {', '.join(names)}."
        + (" Run the same on the others now." if len(names) > 1 else ""),
    )


@cluster.command("join")
@click.option("--via", required=True, help="A member to ask; [peers] has its address.")
@click.option("--address", default="", help="Where the members reach this node, if not by [peers].")
@click.pass_obj
def join(state: ShellState, via: str, address: str) -> None:
    """Make this node a member: it learns all that was agreed on, and then votes."""
    done = _ask(state, do="join", via=via, address=address)
    _say(state, done, f"{done['member']} is a member and votes.")


@cluster.command("leave")
@click.option("--member", default="", help="Another member, which is gone for good.")
@click.pass_obj
def leave(state: ShellState, member: str) -> None:
    """Take this node, or one that is gone for good, out of the cluster."""
    if member:
        done = _ask(state, do="remove", member=member)
        _say(state, done, f"{member} is no member any more.")
        return
    done = _ask(state, do="leave")
    _say(
        state,
        done,
        f"{done['member']} is no member any more; its old log is {done['aside']}, of no more use.",
    )


@cluster.command("members")
@click.pass_obj
def members(state: ShellState) -> None:
    """Who takes part, as this node knows it. The leader also knows who is behind or silent."""
    found = _ask(state, do="status")["members"]
    state.show(
        found,
        "",
        ("member", "address", "votes", "leads", "behind", "silent", "way there"),
        [
            (
                one["name"],
                one["address"] or "by [peers]",
                "yes" if one["votes"] else "learns",
                "leads" if one["leads"] else "",
                one["behind"],
                None if one["silent_ms"] is None else f"{one['silent_ms']} ms",
                one["trouble"],
            )
            for one in found
        ],
    )


@cluster.command("transfer")
@click.argument("member")
@click.pass_obj
def transfer(state: ShellState, member: str) -> None:
    """Let another member lead."""
    done = _ask(state, do="transfer", member=member)
    _say(state, done, f"{member} leads.")


@cluster.command("snapshot")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def snapshot(state: ShellState, path: Path) -> None:
    """Write a backup: all that is agreed on at this moment, into a new file."""
    done = _ask(state, do="snapshot", path=str(path.absolute()))
    _say(state, done, f"{path}: the state of {done['taken']}, {done['bytes']} bytes.")


@cluster.command("restore")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.pass_obj
def restore(state: ShellState, path: Path) -> None:
    """Begin a new cluster of this node alone with what a backup holds; the others then join.

    What was agreed on after the backup is not in it: before machines run again, make sure on each
    node which ones do.
    """
    done = _ask(state, do="restore", path=str(path.absolute()))
    _say(
        state,
        done,
        f"This node is a cluster of its own with the state of {done['taken']} "
        f"of {done['cluster']}. The others join it: novacron cluster join --via …",
    )


@cluster.command("status")
@click.pass_obj
def status(state: ShellState) -> None:
    """What this node is in its cluster, who leads, and how far the log has come."""
    found = _ask(state, do="status")
    if found["role"] == "none":
        text = "in no cluster: `novacron cluster init` begins one, `novacron cluster join` joins"
        found["trouble"] = found["trouble"] or text
    rows = [
        (key, value if value != "" else "nobody" if key == "leader" else value)
        for key, value in found.items()
        if not isinstance(value, list | dict) and value != ""
    ]
    for reason, count in found.get("refused", {}).items():
        rows.append((f"refused: {reason}", count))
    state.show(found, "", ("", ""), rows)
