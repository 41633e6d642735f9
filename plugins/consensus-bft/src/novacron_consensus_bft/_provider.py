"""The provider: the register of ownership, kept by members that do not trust each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from novacron import Fenced, NodeFacts, Ownership
from novacron_agreement import NAME_CHARS_MAX
from novacron_agreement.machine import OVERTAKEN
from novacron_agreement.ownership import EPOCH_MAX, Outcome, Record
from novacron_agreement.registrar import Registrar

from novacron_consensus_bft._node import BftError, BftNode
from novacron_consensus_bft._toml import BftSection


class BftRegister:
    """Ownership, agreed on by a quorum of the members before a call returns.

    Only members use it, each through its own log. A change that is in doubt is repeated until it
    is known: it takes effect once. What is read is final: no change that this node asked for
    before takes effect afterwards.
    """

    name: ClassVar[str] = "bft"
    Settings: ClassVar[type] = BftSection

    def __init__(self, settings: BftSection, node: NodeFacts) -> None:
        self.node = BftNode(settings, node)
        self._registrar = Registrar(
            node.name, self.node.folder, self.node.propose, settings.timeout_s
        )
        self._closed = False

    async def read(self, machine: str) -> Ownership | None:
        outcome = await self._outcome(lambda: self._registrar.read(machine))
        return None if outcome.present is None else _ownership(outcome.present)

    async def advance(self, record: Ownership, *, expected_epoch: int | None) -> None:
        _check(record)
        if expected_epoch is not None and not 0 <= expected_epoch < EPOCH_MAX:
            raise ValueError(f"expected_epoch {expected_epoch} is not between 0 and 2**63 - 2")
        new = Record(record.machine, record.owner, record.epoch, record.session)
        outcome = await self._outcome(lambda: self._registrar.advance(new, expected_epoch))
        if not outcome.done:
            raise _fenced(record.machine, outcome.present, f"for epoch {record.epoch}")

    async def owned_by(self, node: str) -> Sequence[Ownership]:
        await self._outcome(self._registrar.settle)
        return [_ownership(found) for found in await self.node.read(lambda it: it.owned_by(node))]

    async def forget(self, machine: str, *, epoch: int) -> None:
        outcome = await self._outcome(lambda: self._registrar.forget(machine, epoch))
        if not outcome.done:
            raise _fenced(machine, outcome.present, f"to forget epoch {epoch}")

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.node.close()

    async def _outcome(self, ask: Callable[[], Awaitable[Outcome]]) -> Outcome:
        if self._closed:
            raise RuntimeError("the register is closed")
        try:
            outcome = await ask()
        except TimeoutError:
            raise BftError(
                "the register is busy with what this node asked for before",
                hint="more than two thirds of the members must run and reach each other",
            ) from None
        if outcome.error:
            raise BftError(
                f"the register refused a request: {outcome.error}",
                hint="a member used this one's name, or this node's state folder was lost and its "
                "clock set back: set the clock right and restart it"
                if outcome.error == OVERTAKEN
                else "",
            )
        return outcome


def _ownership(record: Record) -> Ownership:
    return Ownership(
        machine=record.machine, owner=record.owner, epoch=record.epoch, session=record.session
    )


def _check(record: Ownership) -> None:
    for label, value, least in (
        ("machine", record.machine, 1),
        ("owner", record.owner, 1),
        ("session", record.session, 0),
    ):
        if not least <= len(value) <= NAME_CHARS_MAX or not value.isprintable():
            raise ValueError(f"{label} {value!r} is no text of {least} to {NAME_CHARS_MAX} letters")
    if type(record.epoch) is not int or not 1 <= record.epoch <= EPOCH_MAX:
        raise ValueError(f"epoch {record.epoch!r} is not between 1 and 2**63 - 1")


def _fenced(machine: str, present: Record | None, asked: str) -> Fenced:
    holds = f"epoch {present.epoch} of {present.owner!r}" if present else "no record"
    return Fenced(
        f"machine {machine!r}: asked {asked}, and {holds} is there",
        hint="read the record; whoever is not its owner must not run the machine",
        machine=machine,
        epoch=present.epoch if present else 0,
        owner=present.owner if present else "",
    )
