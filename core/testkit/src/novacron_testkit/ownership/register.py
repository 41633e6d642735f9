"""How a simulated node gets its requests to the register: it asks whoever leads, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from attrs import frozen
from novacron_agreement.ownership import Outcome, Record

AGAIN_MS = 250
GIVE_UP_MS = 800

# Gets the answer, or None if there was none in time: what was asked may or may not be done.
Then = Callable[[Outcome | None], None]


@frozen
class Ask:
    """A request to a member of the cluster."""

    to: str
    number: int
    command: bytes


@frozen(repr=False)
class Asked:
    """A request on its way; ``life`` is the asking node's."""

    life: int
    number: int
    command: bytes

    def __repr__(self) -> str:
        return f"asks #{self.number} {msgspec.msgpack.decode(self.command)}"


@frozen(repr=False)
class Told:
    """A member's answer, or, if that is None, who leads instead, as far as it knows."""

    life: int
    number: int
    answer: bytes | None
    leader: str | None

    def __repr__(self) -> str:
        if self.answer is None:
            return f"refuses #{self.number}: ask {self.leader}"
        return f"answers #{self.number} {msgspec.msgpack.decode(self.answer)}"

    def to(self, registrar: Any, now_ms: int) -> list[Ask]:
        """Let it arrive where it was waited for."""
        asked: list[Ask]
        if self.answer is None:
            asked = registrar.refused(now_ms, self.number, self.leader)
        else:
            asked = registrar.said(now_ms, self.number, self.answer)
        return asked


class Registrar:
    """One life of a node's access to the register.

    Args:
        requests: What it asks for.
        members: Whom to ask.
    """

    def __init__(self, requests: Any, members: Sequence[str]) -> None:
        self.requests = requests
        self.members = members
        self._asked: Any = None  # a `novacron_agreement.requests.Command`
        self._until_ms = 0
        self._again_ms = 0
        self._leader: str | None = None
        self._last: str | None = None
        self._turn = 0

    def advance(
        self,
        record: Record,
        expected_epoch: int | None,
        then: Then,
        only_while: tuple[str, int] | None = None,
    ) -> None:
        """Write a record. See `novacron_agreement.ownership.Advance`."""
        self.requests.advance(record, expected_epoch, lambda said, _: then(said), only_while)

    def read(self, machine: str, then: Then) -> None:
        """Read a record. All that was asked before is done or will never be."""
        self.requests.read(machine, lambda said, _: then(said))

    def tick(self, now_ms: int) -> list[Ask]:
        """Time has passed: what is to be asked, or asked again."""
        given_up = self._asked
        if given_up is not None and now_ms >= self._until_ms and not given_up.introduces:
            self._asked = None
            self.requests.give_up(given_up.number)
        if self._asked is None:
            self._asked = self.requests.next()
            self._until_ms, self._again_ms = now_ms + GIVE_UP_MS, now_ms
        if self._asked is None or now_ms < self._again_ms:
            return []
        self._again_ms = now_ms + AGAIN_MS
        return [Ask(self._whom(), self._asked.number, self._asked.command)]

    def said(self, now_ms: int, number: int, answer: bytes) -> list[Ask]:
        """A member's answer."""
        if self._asked is not None and self._asked.number == number:
            self._asked, self._leader = None, self._last
        if self.requests.said(number, answer):
            return self.tick(now_ms)
        return []

    def refused(self, now_ms: int, number: int, leader: str | None) -> list[Ask]:
        """A member does not lead; it may know who does."""
        if self._asked is None or self._asked.number != number:
            return []
        known, self._leader = self._leader, leader
        if leader is not None and leader != known:
            self._again_ms = now_ms
        return self.tick(now_ms)

    def _whom(self) -> str:
        self._last, self._leader = self._leader, None  # if it is silent, another one next time
        if self._last is None:
            self._turn += 1
            self._last = self.members[self._turn % len(self.members)]
        return self._last
