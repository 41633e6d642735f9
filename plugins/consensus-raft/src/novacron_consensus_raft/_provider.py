"""The provider: the register of ownership, kept by a raft cluster of the nodes themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Final, Literal

import msgspec
from novacron import Fenced, NodeFacts, Ownership
from novacron_agreement import NAME_CHARS_MAX
from novacron_agreement.machine import OVERTAKEN
from novacron_agreement.ownership import EPOCH_MAX, Outcome, OwnershipMachine, Record
from novacron_agreement.registrar import Registrar

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
        outcome = await self._outcome(lambda: self._registrar.read(machine))
        return None if outcome.present is None else _ownership(outcome.present)

    async def advance(self, record: Ownership, *, expected_epoch: int | None) -> None:
        _check(record)
        if expected_epoch is not None and not 0 <= expected_epoch < EPOCH_MAX:
            raise ValueError(f"expected_epoch {expected_epoch} is not between 0 and 2**63 - 2")
        new = Record(record.machine, record.owner, record.epoch, record.session)
        outcome = await self._outcome(lambda: self._registrar.advance(new, expected_epoch))
        if not outcome.done:
            wanted = f"epoch {record.epoch}"
            raise _fenced(record.machine, outcome.present, wanted, expected_epoch)

    async def owned_by(self, node: str) -> Sequence[Ownership]:
        await self._outcome(self._registrar.settle)
        found = _records.decode(await self._query(Query("owner", node)))
        return [_ownership(record) for record in found]

    async def forget(self, machine: str, *, epoch: int) -> None:
        outcome = await self._outcome(lambda: self._registrar.forget(machine, epoch))
        if not outcome.done:
            raise _fenced(machine, outcome.present, "to forget it", epoch)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.member.close()

    async def _query(self, query: Query) -> bytes:
        self._require_open()
        return await self.member.ask("query", encode(query))

    async def _propose(self, command: bytes) -> bytes:
        return await self.member.ask("propose", command)

    async def _outcome(self, ask: Callable[[], Awaitable[Outcome]]) -> Outcome:
        self._require_open()
        try:
            outcome = await ask()
        except TimeoutError:
            raise RaftError(
                "the register is busy with what this node asked for before",
                hint="`novacron cluster status` says whether anybody leads",
            ) from None
        if outcome.error:
            raise RaftError(
                f"the register refused a request: {outcome.error}",
                hint="another node has this one's name, or its state folder was lost and its clock "
                "set back: set the clock right and restart it"
                if outcome.error == OVERTAKEN
                else "",
            )
        return outcome

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


def _fenced(machine: str, present: Record | None, asked: str, expected: int | None) -> Fenced:
    holds = f"epoch {present.epoch} of {present.owner!r}" if present else "no record"
    where = "" if expected is None else f" over epoch {expected}"
    return Fenced(
        f"machine {machine!r}: asked {asked}{where}, and {holds} is there",
        hint="read the record; whoever is not its owner must not run the machine",
        machine=machine,
        epoch=present.epoch if present else 0,
        owner=present.owner if present else "",
    )
