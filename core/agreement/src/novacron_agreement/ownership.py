"""Who owns a machine, as a replicated state machine: the laws of a register of ownership.

A record is written only over a lower epoch, and over the one that the writer expected. Writing what
holds already succeeds, so an advance may be repeated after a doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from novacron_agreement.effects import NAME_CHARS_MAX
from novacron_agreement.machine import Request, Sessions, SnapshotError

EPOCH_MAX: Final = 2**63 - 1
_FORMAT: Final = "novacron-ownership-1"


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One machine's owner.

    Attributes:
        machine: The machine's name.
        owner: The node that may run it, and the only one.
        epoch: The fencing token: each change of owner raises it.
        session: The migration session that made this record, "" if none did.
    """

    machine: str
    owner: str
    epoch: int
    session: str = ""

    def sound(self) -> bool:
        names = (self.machine, self.owner, self.session)
        fits = all(len(name) <= NAME_CHARS_MAX for name in names)
        return fits and bool(self.machine) and bool(self.owner) and 1 <= self.epoch <= EPOCH_MAX


class Advance(Request, frozen=True):
    """Write a record, if ``expected_epoch`` holds (0: none; None: any lower one).

    Attributes:
        only_while: Another record's name and epoch, which must hold, too; None for nothing else.
    """

    record: Record
    expected_epoch: int | None = None
    only_while: tuple[str, int] | None = None


class Forget(Request, frozen=True):
    """Remove a deleted machine's record, if this epoch holds."""

    machine: str
    epoch: int


class Outcome(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The answer to a command.

    Attributes:
        done: Whether the record is now as asked for.
        present: What holds after it.
        error: Why the command was no sound one; "" if it was, also when it was fenced.
    """

    done: bool
    present: Record | None
    error: str = ""


class _State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: str
    records: list[Record]
    sessions: list[tuple[str, int, bytes]]


_commands: Final[msgspec.msgpack.Decoder[Advance | Forget]] = msgspec.msgpack.Decoder(
    Advance | Forget
)
_outcomes: Final = msgspec.msgpack.Decoder(Outcome)
_states: Final = msgspec.msgpack.Decoder(_State)


def advance(
    record: Record,
    *,
    expected_epoch: int | None,
    only_while: tuple[str, int] | None = None,
    client: str = "",
    number: int = 0,
) -> bytes:
    """The command that writes a record; for ``client`` and ``number`` see `Sessions.once`."""
    return msgspec.msgpack.encode(Advance(client, number, record, expected_epoch, only_while))


def forget(machine: str, *, epoch: int, client: str = "", number: int = 0) -> bytes:
    """The command that removes a record."""
    return msgspec.msgpack.encode(Forget(client, number, machine, epoch))


def outcome(answer: bytes) -> Outcome:
    """What `OwnershipMachine.apply` answered. Raises ValueError if it is no such answer."""
    try:
        return _outcomes.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"not an answer of the ownership machine: {error}") from error


def decode(command: bytes) -> Advance | Forget | None:
    """What a command asks for; None if it is none."""
    try:
        return _commands.decode(command)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


class OwnershipMachine:
    """The records of all machines. See the module."""

    __slots__ = ("_records", "_sessions")

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._sessions = Sessions()

    def read(self, machine: str) -> Record | None:
        return self._records.get(machine)

    def owned_by(self, node: str) -> Sequence[Record]:
        """All records of a node, by machine."""
        found = [record for record in self._records.values() if record.owner == node]
        return sorted(found, key=lambda record: record.machine)

    def apply(self, index: int, command: bytes) -> bytes:
        """Do what a command says; an `Outcome`. What is no command changes nothing."""
        asked = decode(command)
        if asked is None:
            return refuse("not a command of the ownership machine")
        if not asked.asked_soundly():
            return refuse("a client's name or number is out of bounds")
        return self._sessions.once(asked.client, asked.number, lambda: self._do(asked), refuse)

    def _do(self, asked: Advance | Forget) -> bytes:
        if isinstance(asked, Forget):
            return self._forget(asked)
        new = asked.record
        if not new.sound():
            return refuse("a record needs a machine, an owner and an epoch from 1 to 2**63 - 1")
        present = self._records.get(new.machine)
        epoch = present.epoch if present else 0
        done = present == new or (
            new.epoch > epoch
            and asked.expected_epoch in (None, epoch)
            and (asked.only_while is None or self._holds(*asked.only_while))
        )
        if done:
            self._records[new.machine] = present = new
        return msgspec.msgpack.encode(Outcome(done, present))

    def _holds(self, machine: str, epoch: int) -> bool:
        present = self._records.get(machine)
        return present is not None and present.epoch == epoch

    def _forget(self, asked: Forget) -> bytes:
        present = self._records.get(asked.machine)
        if present is not None and present.epoch != asked.epoch:
            return msgspec.msgpack.encode(Outcome(False, present))
        self._records.pop(asked.machine, None)
        return msgspec.msgpack.encode(Outcome(True, None))

    def snapshot(self) -> bytes:
        records = sorted(self._records.values(), key=lambda record: record.machine)
        return msgspec.msgpack.encode(_State(_FORMAT, records, self._sessions.rows()))

    def restore(self, snapshot: bytes) -> None:
        """Take a snapshot's state. Raises SnapshotError, and changes nothing then."""
        try:
            state = _states.decode(snapshot)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SnapshotError(f"not a snapshot of the ownership machine: {error}") from error
        if state.format != _FORMAT or not all(record.sound() for record in state.records):
            raise SnapshotError(f"a snapshot of the format {state.format[:40]!r}, not {_FORMAT}")
        self._records = {record.machine: record for record in state.records}
        self._sessions = Sessions.of(state.sessions)


def refuse(reason: str) -> bytes:
    """The answer to a command that is no sound one."""
    return msgspec.msgpack.encode(Outcome(False, None, reason))
