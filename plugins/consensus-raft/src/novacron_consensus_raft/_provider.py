"""The provider: the register of ownership, kept by a raft cluster of the nodes themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Final, Literal

import msgspec
from msgspec.structs import asdict
from novacron import NodeFacts, Ownership, check_record, fenced
from novacron_agreement.machine import OVERTAKEN
from novacron_agreement.ownership import Outcome, OwnershipMachine, Record
from novacron_agreement.registrar import RegisterRefused, Registrar

from novacron_consensus_raft._member import RaftError, RaftMember, encode
from novacron_consensus_raft._toml import RaftSection

_records: Final = msgspec.msgpack.Decoder(list[Record])


class Query(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a node asks of the register: a node's records, or all of it."""

    kind: Literal["owner", "snapshot"]
    name: str = ""


class RaftRegister:
    """Ownership, agreed on by a majority of the cluster's members before a call returns.

    Every call goes to the leader, from members and from nodes that are none. A change that is in
    doubt is repeated until it is known: it takes effect once. What is read is final: no change that
    this node asked for before takes effect afterwards.
    """

    name: ClassVar[str] = "raft"
    Settings: ClassVar[type] = RaftSection

    def __init__(self, settings: RaftSection, node: NodeFacts) -> None:
        self.member = RaftMember(settings, node, OwnershipMachine, answer_query)
        self._registrar = Registrar(
            node.name, self.member.folder, self._propose, settings.timeout_s
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
        found = _records.decode(await self._query(Query("owner", node)))
        return [Ownership(**asdict(record)) for record in found]

    async def forget(self, machine: str, *, epoch: int) -> None:
        done, present = await self._ask(lambda: self._registrar.forget(machine, epoch))
        if not done:
            raise fenced(machine, present, f"to forget epoch {epoch}")

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.member.close()

    async def _query(self, query: Query) -> bytes:
        self._require_open()
        return await self.member.ask("query", encode(query))

    async def _propose(self, command: bytes) -> bytes:
        return await self.member.ask("propose", command)

    async def _ask(self, ask: Callable[[], Awaitable[Outcome]]) -> tuple[bool, Ownership | None]:
        """Whether it was done, and what holds now."""
        self._require_open()
        try:
            outcome = await ask()
        except TimeoutError:
            raise RaftError(
                "the register is busy with what this node asked for before",
                hint="`novacron cluster status` says whether anybody leads",
            ) from None
        except RegisterRefused as error:
            raise RaftError(
                f"the register refused a request: {error}",
                hint="another node has this one's name, or its state folder was lost and its clock "
                "set back: set the clock right and restart it"
                if str(error) == OVERTAKEN
                else "",
            ) from None
        present = outcome.present
        return outcome.done, None if present is None else Ownership(**asdict(present))

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("the register is closed")


_queries: Final = msgspec.msgpack.Decoder(Query)


def answer_query(machine: OwnershipMachine, data: bytes) -> bytes:
    """The answer to a `Query`; empty if it is none."""
    try:
        query = _queries.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return b""
    if query.kind == "owner":
        return encode(machine.owned_by(query.name))
    return machine.snapshot()
