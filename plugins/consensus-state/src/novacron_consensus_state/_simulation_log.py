"""A small replicated log for the simulation: one fixed member decides, the others copy.

It keeps the promises of `novacron_agreement.LogCore` (durable before committed, the same order
everywhere, messages may be lost) and has none of a real log's availability: while its first member
is down, nothing is decided. What state does with a log can be tried with it; with raft it is tried
in the repository's own tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from novacron_agreement import (
    Commit,
    Effect,
    Readable,
    Reason,
    Rejected,
    Restore,
    Save,
    Send,
)

BEAT_MS: Final = 150
AT_ONCE: Final = 32


class _Beat(msgspec.Struct, array_like=True, tag=1):
    """The first member: my log reaches to here."""

    length: int


class _Lack(msgspec.Struct, array_like=True, tag=2):
    """Another one: I have all up to here, send more."""

    length: int


class _More(msgspec.Struct, array_like=True, tag=3):
    """The first member: commands behind ``after``; before that, perhaps, a snapshot up to there."""

    after: int
    commands: list[bytes]
    snapshot: bytes | None = None


_decoder: Final = msgspec.msgpack.Decoder(_Beat | _Lack | _More)
_record: Final = msgspec.msgpack.Decoder(tuple[int, bytes, bool])


class FixedLog:
    """One member. ``records``: (index, command, False), or (index, snapshot, True) as the first."""

    def __init__(self, name: str, members: Sequence[str], records: Sequence[bytes]) -> None:
        self.name = name
        self.members: Mapping[str, str] = dict.fromkeys(members, "")
        self.first = min(members)
        self.deadline_ms: int | None = None
        self._base, self._snapshot = 0, b""
        self._log: list[bytes] = []
        for record in records:
            index, data, is_snapshot = _record.decode(record)
            if is_snapshot:
                self._base, self._snapshot, self._log = index, data, []
            else:
                self._log.append(data)

    @property
    def leader(self) -> str | None:
        return self.first

    @property
    def _last(self) -> int:
        return self._base + len(self._log)

    def start(self, now_ms: int) -> list[Effect]:
        self.deadline_ms = now_ms + BEAT_MS if self.name == self.first else None
        made: list[Effect] = [Restore(self._base, self._snapshot)] if self._base else []
        return made + [Commit(self._base + n, c) for n, c in enumerate(self._log, 1)]

    def tick(self, now_ms: int) -> list[Effect]:
        if self.deadline_ms is None or now_ms < self.deadline_ms:
            return []
        self.deadline_ms = now_ms + BEAT_MS
        return self._tell(_Beat(self._last))

    def receive(self, now_ms: int, sender: str, message: bytes) -> list[Effect]:
        try:
            said = _decoder.decode(message)
        except msgspec.MsgspecError:
            return []
        match said:
            case _Beat(length) if length > self._last:
                return [Send(sender, _pack(_Lack(self._last)))]
            case _Lack(length) if self.name == self.first:
                if length < self._base:
                    return [Send(sender, _pack(_More(self._base, [], self._snapshot)))]
                at = length - self._base
                return [Send(sender, _pack(_More(length, self._log[at : at + AT_ONCE])))]
            case _More(after, commands, snapshot):
                return self._take(after, commands, snapshot)
        return []

    def _take(self, after: int, commands: list[bytes], snapshot: bytes | None) -> list[Effect]:
        if snapshot is not None and after > self._last:
            self._base, self._snapshot, self._log = after, snapshot, []
            return [Save((_line(after, snapshot, True),), True), Restore(after, snapshot)]
        made: list[Effect] = []
        for index, command in enumerate(commands, after + 1):
            if index == self._last + 1:
                made += self._append(command, None)
        return made

    def _append(self, command: bytes, ticket: int | None) -> list[Effect]:
        self._log.append(command)
        index = self._last
        return [Save((_line(index, command, False),)), Commit(index, command, ticket)]

    def propose(self, now_ms: int, ticket: int, command: bytes) -> list[Effect]:
        if self.name != self.first:
            return [Rejected(ticket, Reason.NOT_LEADER, self.first)]
        made = self._append(command, ticket)
        return made + self._tell(_More(self._last - 1, [command]))

    def read(self, now_ms: int, ticket: int) -> list[Effect]:
        if self.name != self.first:
            return [Rejected(ticket, Reason.NOT_LEADER, self.first)]
        return [Readable(ticket, self._last)]

    def compact(self, index: int, snapshot: bytes) -> list[Effect]:
        if index <= self._base:
            return []
        del self._log[: index - self._base]
        self._base, self._snapshot = index, snapshot
        lines = [_line(self._base + n, c, False) for n, c in enumerate(self._log, 1)]
        return [Save((_line(index, snapshot, True), *lines), True)]

    def _tell(self, said: msgspec.Struct) -> list[Effect]:
        return [Send(to, _pack(said)) for to in self.members if to != self.name]


def _pack(said: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(said)


def _line(index: int, data: bytes, is_snapshot: bool) -> bytes:
    return msgspec.msgpack.encode((index, data, is_snapshot))
