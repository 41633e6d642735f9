"""Consensus: who owns a machine. A hand-over commits by one durable, fenced record here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from novacron_dwcp import Ownership, check_record

from novacron.errors import Fenced
from novacron.hookspecs.node import NodeFacts
from novacron.markers import hookspec

__all__ = [
    "Ownership", "OwnershipRegister", "check_record", "fenced", "novacron_register_consensus",
]  # fmt: skip


def fenced(
    machine: str, present: Ownership | None, asked: str, expected_epoch: int | None = None
) -> Fenced:
    """A register's refusal; ``asked`` is what it was to do ("to write epoch 3")."""
    asked += "" if expected_epoch is None else f" over epoch {expected_epoch}"
    holds = f"epoch {present.epoch} of {present.owner!r}" if present else "no record"
    return Fenced(
        f"machine {machine!r}: asked {asked}, but the register holds {holds}",
        hint="read the register again; whoever it names may run the machine, nobody else",
        truth=f"the register is unchanged and holds {holds}",
        machine=machine,
        epoch=present.epoch if present else 0,
        owner=present.owner if present else "",
    )


class OwnershipRegister(Protocol):
    """A consensus provider: the register of ownership.

    A register may be local to its node or shared by many; the hand-over works with both. All
    methods run on the event loop and raise OSError, or the provider's own NovacronError, if the
    register cannot be read or written: after a failed `advance` the caller must `read` to learn
    whether the record was made. What it reads is final: no change that this node asked for before,
    in this life or an earlier one, takes effect afterwards, since a hand-over acts on it for good.
    """

    name: ClassVar[str]
    Settings: ClassVar[type]

    def __init__(self, settings: Any, node: NodeFacts) -> None: ...

    async def read(self, machine: str) -> Ownership | None:
        """The newest record of the machine, None if there is none."""
        ...

    async def advance(self, record: Ownership, *, expected_epoch: int | None) -> None:
        """Write a record whose epoch is higher than the present one. Durable when it returns.

        Args:
            record: What shall hold. Writing exactly what holds already succeeds: calls may be
                repeated after a doubt.
            expected_epoch: The epoch that must hold now (0: no record may exist); None if any
                lower one will do.
        Raises: Fenced if another epoch holds; nothing is changed.
        """
        ...

    async def owned_by(self, node: str) -> Sequence[Ownership]:
        """All machines that the node owns, by name."""
        ...

    async def forget(self, machine: str, *, epoch: int) -> None:
        """Remove a deleted machine's record. Raises Fenced if another epoch holds."""
        ...

    async def close(self) -> None:
        """Release the register. Twice is once."""
        ...


@hookspec
def novacron_register_consensus() -> Sequence[type[OwnershipRegister]]:  # type: ignore[empty-body]
    """Offer registers of ownership.

    When: once, when the plugins are loaded; a provider is made when the node starts.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: the provider classes, each with a ``name``.
    On error: the plugin is reported as failed and none of its hooks is used.
    Runs on: the loading thread; must not block.
    """
