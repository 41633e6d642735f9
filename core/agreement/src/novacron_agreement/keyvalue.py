"""A replicated map from keys to bytes, whose requests take effect once however often they are made.

It is what benchmarks and the simulator replicate, and what strong reads and writes of shared state
go through.
"""

from __future__ import annotations

from typing import Final

import msgspec

from novacron_agreement.effects import COMMAND_BYTES_MAX
from novacron_agreement.machine import Request, Sessions, SnapshotError

KEY_CHARS_MAX: Final = 1024
# What a value may have, so that its command still fits into a log's longest.
VALUE_BYTES_MAX: Final = COMMAND_BYTES_MAX - (8 << 10)
_FORMAT: Final = "novacron-keyvalue-1"


class Put(Request, frozen=True):
    """Write a value; the answer has the one before."""

    key: str
    value: bytes


class Get(Request, frozen=True):
    """Read a value through the log."""

    key: str


class CompareAndSet(Request, frozen=True):
    """Write a value if ``expected`` is there; None is no value, also as the new one."""

    key: str
    expected: bytes | None
    value: bytes | None


class Delete(Request, frozen=True):
    """Remove a key; the answer has the value that it had."""

    key: str


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The answer to a command.

    Attributes:
        done: Whether it was done; False for a comparison that failed, or an error.
        value: The key's value before it.
        error: Why the command was refused; "" if it was not.
    """

    done: bool
    value: bytes | None = None
    error: str = ""


class _State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: str
    values: list[tuple[str, bytes]]
    sessions: list[tuple[str, int, bytes]]


Command = Put | Get | CompareAndSet | Delete
_commands: Final = msgspec.msgpack.Decoder(Command)
_answers: Final = msgspec.msgpack.Decoder(Answer)
_states: Final = msgspec.msgpack.Decoder(_State)


def put(key: str, value: bytes, *, client: str = "", number: int = 0) -> bytes:
    """The command that writes a value; for ``client`` and ``number`` see `Sessions.once`."""
    return msgspec.msgpack.encode(Put(client, number, key, value))


def get(key: str, *, client: str = "", number: int = 0) -> bytes:
    """The command that reads a value through the log."""
    return msgspec.msgpack.encode(Get(client, number, key))


def compare_and_set(
    key: str, expected: bytes | None, value: bytes | None, *, client: str = "", number: int = 0
) -> bytes:
    """The command that writes a value if another is there."""
    return msgspec.msgpack.encode(CompareAndSet(client, number, key, expected, value))


def delete(key: str, *, client: str = "", number: int = 0) -> bytes:
    """The command that removes a key."""
    return msgspec.msgpack.encode(Delete(client, number, key))


def answer(data: bytes) -> Answer:
    """What `KeyValueMachine.apply` answered. Raises ValueError if it is no such answer."""
    try:
        return _answers.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"not an answer of the key-value machine: {error}") from error


class KeyValueMachine:
    """The map. See the module."""

    __slots__ = ("_sessions", "_values")

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._sessions = Sessions()

    def get(self, key: str) -> bytes | None:
        return self._values.get(key)

    def keys(self) -> list[str]:
        return sorted(self._values)

    def apply(self, index: int, command: bytes) -> bytes:
        """Do what a command says; an `Answer`. What is no command changes nothing."""
        try:
            asked = _commands.decode(command)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return _refuse("not a command of the key-value machine")
        if not asked.asked_soundly() or len(asked.key) > KEY_CHARS_MAX:
            return _refuse("a client's name, its number or the key is out of bounds")
        return self._sessions.once(asked.client, asked.number, lambda: self._do(asked), _refuse)

    def _do(self, asked: Command) -> bytes:
        before = self._values.get(asked.key)
        done = True
        match asked:
            case Put(value=value):
                self._values[asked.key] = value
            case Delete():
                self._values.pop(asked.key, None)
            case CompareAndSet(expected=expected, value=value):
                done = before == expected
                if done and value is not None:
                    self._values[asked.key] = value
                elif done:
                    self._values.pop(asked.key, None)
            case Get():
                pass
        return msgspec.msgpack.encode(Answer(done, before))

    def snapshot(self) -> bytes:
        values = sorted(self._values.items())
        return msgspec.msgpack.encode(_State(_FORMAT, values, self._sessions.rows()))

    def restore(self, snapshot: bytes) -> None:
        """Take a snapshot's state. Raises SnapshotError, and changes nothing then."""
        try:
            state = _states.decode(snapshot)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SnapshotError(f"not a snapshot of the key-value machine: {error}") from error
        if state.format != _FORMAT:
            raise SnapshotError(f"a snapshot of the format {state.format[:40]!r}, not {_FORMAT}")
        self._values = dict(state.values)
        self._sessions = Sessions.of(state.sessions)


def _refuse(reason: str) -> bytes:
    return msgspec.msgpack.encode(Answer(False, None, reason))
