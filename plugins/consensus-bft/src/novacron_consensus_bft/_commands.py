"""``novacron consensus``: a member's key for agreement among members that may lie; its status."""

from __future__ import annotations

from pathlib import Path

import click
from novacron import ShellState

from novacron_consensus_bft._control import call
from novacron_consensus_bft._keys import as_text, load_key, make_key
from novacron_consensus_bft._signing import SIGNERS, Signer


def _path(state: ShellState) -> Path:
    path: Path = state.config.sections["consensus.bft"].key_path(state.config.node.state_dir)
    return path


def _show(state: ShellState, path: Path, signer: Signer) -> None:
    name, text = state.config.node.name, as_text(signer.public_key)
    if state.json:
        state.print_json({"node": name, "file": str(path), "public_key": text})
    else:
        # One line, to be copied into every member's [consensus.bft.members] as it stands.
        click.echo(f'{name} = "{text}"')


@click.group()
def consensus() -> None:
    """What members agree by, and why."""


@consensus.group()
def keys() -> None:
    """This node's key for the provider bft. It signs what the node says to the other members."""


@keys.command()
@click.option("--scheme", type=click.Choice(list(SIGNERS)), default="ed25519", show_default=True,
              help="ml-dsa-65 outlasts quantum computers, with longer signatures.")  # fmt: skip
@click.pass_obj
def new(state: ShellState, scheme: str) -> None:
    """Make this node's key, and print its public part for every member's configuration.

    The line belongs into [consensus.bft.members]. The secret part stays on this node.
    """
    path = _path(state)
    _show(state, path, make_key(path, scheme))


@keys.command()
@click.pass_obj
def show(state: ShellState) -> None:
    """Print the public part of this node's key, as it stands in [consensus.bft.members]."""
    path = _path(state)
    _show(state, path, load_key(path))


@consensus.command()
@click.pass_obj
def status(state: ShellState) -> None:
    """Show this member's cluster (provider bft): who leads, how far it has come, and who lied.

    As JSON it has the proofs that a member has signed two things that contradict each other.
    """
    found = call(state.config.node.state_dir)
    if state.json:
        state.print_json(found)
        return
    rows = [(key, value) for key, value in found.items() if not isinstance(value, list | dict)]
    rows += [(f"refused: {reason}", count) for reason, count in found.get("refused", {}).items()]
    state.table("", ("", ""), [(key, value) for key, value in rows if value != ""])
    state.table(
        "",
        ("member", "leads", "lied", "way there", "key"),
        [
            (
                member["name"],
                "leads" if member["leads"] else "",
                "yes: see --json" if member["lied"] else "",
                member["trouble"],
                member["key"][:40],
            )
            for member in found["members"]
        ],
    )
