"""What replicated state machines share: who asked what, and what was answered.

A request may stand in the log twice, because its client asked again after a doubt. `Sessions`
remembers each client's newest answer, so that the second one changes nothing and gets the same
answer. It is part of the machine's state: every member remembers the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec

# So many clients are remembered; the one that was silent the longest is forgotten for a new one.
CLIENTS_MAX: Final = 4096
CLIENT_CHARS_MAX: Final = 128
NUMBER_MAX: Final = 2**63 - 1
# Why a request was refused, where its client can do something about it.
FORGOTTEN: Final = "the client is not known any more: read, then ask under a new name"
OVERTAKEN: Final = "a newer request of this client was answered already"


class StateMachine(Protocol):
    """What is replicated: the same commands in the same order give the same state everywhere."""

    def apply(self, index: int, command: bytes) -> bytes:
        """Do what a command says; the answer for the one who proposed it. Never raises."""
        ...

    def snapshot(self) -> bytes:
        """The whole state; equal states give equal bytes."""
        ...

    def restore(self, snapshot: bytes) -> None:
        """Take a snapshot's state instead. Raises SnapshotError, and changes nothing then."""
        ...


class SnapshotError(ValueError):
    """A snapshot is damaged, or of another kind or version. The state is as it was before."""


class Sessions:
    """The newest answer to each client. See the module."""

    __slots__ = ("_answers",)

    def __init__(self) -> None:
        # Least lately heard first: the order is part of the state, since it says who is forgotten.
        self._answers: dict[str, tuple[int, bytes]] = {}

    def once(
        self, client: str, number: int, work: Callable[[], bytes], refuse: Callable[[str], bytes]
    ) -> bytes:
        """The answer to a client's request: the work's if it is new, else the one given before.

        Args:
            client: Its name, chosen at random for each life of a client; "" for a request that may
                be applied as often as it is logged.
            number: From 1, one more for each new request; a client asks one thing at a time.
            refuse: Makes an answer of a reason why nothing was done.
        """
        if not client:
            return work()
        if number < 1:
            return refuse("a client numbers its requests from 1")
        last, answer = self._answers.get(client, (0, b""))
        if number == last:
            del self._answers[client]
        elif number < last:
            return refuse(OVERTAKEN)
        elif not last and number > 1:
            return refuse(FORGOTTEN)
        else:
            self._answers.pop(client, None)
            answer = work()
        if len(self._answers) >= CLIENTS_MAX:
            del self._answers[next(iter(self._answers))]
        self._answers[client] = (number, answer)
        return answer

    def rows(self) -> list[tuple[str, int, bytes]]:
        return [(client, number, answer) for client, (number, answer) in self._answers.items()]

    @classmethod
    def of(cls, rows: Iterable[tuple[str, int, bytes]]) -> Sessions:
        made = cls()
        made._answers = {client: (number, answer) for client, number, answer in rows}
        return made


class Request(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of the commands of our machines, MessagePack."""

    client: str
    number: int

    def asked_soundly(self) -> bool:
        return len(self.client) <= CLIENT_CHARS_MAX and 0 <= self.number <= NUMBER_MAX
