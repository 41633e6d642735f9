"""The provider: the register of ownership, kept by members that do not trust each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from msgspec.structs import asdict
from novacron import NodeFacts, Ownership, check_record, fenced
from novacron_agreement.machine import OVERTAKEN
from novacron_agreement.ownership import Outcome, Record
from novacron_agreement.registrar import RegisterRefused, Registrar

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
        _, present = await self._ask(lambda: self._registrar.read(machine))
        return present

    async def advance(self, record: Ownership, *, expected_epoch: int | None) -> None:
        check_record(record, expected_epoch)
        new = Record(record.machine, record.owner, record.epoch, record.session)
        done, present = await self._ask(lambda: self._registrar.advance(new, expected_epoch))
        if not done:
            raise fenced(record.machine, present, f"to write epoch {record.epoch}", expected_epoch)

    async def owned_by(self, node: str) -> Sequence[Ownership]:
        await self._ask(self._registrar.settle)
        return [
            Ownership(**asdict(found))
            for found in await self.node.read(lambda it: it.owned_by(node))
        ]

    async def forget(self, machine: str, *, epoch: int) -> None:
        done, present = await self._ask(lambda: self._registrar.forget(machine, epoch))
        if not done:
            raise fenced(machine, present, f"to forget epoch {epoch}")

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.node.close()

    async def _ask(self, ask: Callable[[], Awaitable[Outcome]]) -> tuple[bool, Ownership | None]:
        """Whether it was done, and what holds now."""
        if self._closed:
            raise RuntimeError("the register is closed")
        try:
            outcome = await ask()
        except TimeoutError:
            raise BftError(
                "the register is busy with what this node asked for before",
                hint="more than two thirds of the members must run and reach each other",
            ) from None
        except RegisterRefused as error:
            raise BftError(
                f"the register refused a request: {error}",
                hint="a member used this one's name, or this node's state folder was lost and its "
                "clock set back: set the clock right and restart it"
                if str(error) == OVERTAKEN
                else "",
            ) from None
        present = outcome.present
        return outcome.done, None if present is None else Ownership(**asdict(present))
