"""How a node uses the replicated register: it asks whoever leads, one thing at a time, in order.

What a hand-over needs beyond the log: after an `advance` whose answer did not come in time, a
`read` must be final, or the change could still be made after the node has decided that it was not.
So reads go through the log too, by the node's one name as a client, with numbers that only grow,
over restarts as well: once a read is answered, all that was asked before is done or refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from attrs import define, field, frozen
from novacron_agreement import ownership
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


@define(eq=False)
class _Request:
    make: Callable[[str, int], bytes]
    then: Then
    patient: bool = False
    number: int = 0
    command: bytes = b""
    until_ms: int = 0
    again_ms: int = 0


@define(eq=False)
class Registrar:
    """One life of a node's access to the register.

    Args:
        node: Its name, which is its name as a client, too.
        life: How often it has been restarted; durable.
        members: Whom to ask.
    """

    node: str
    life: int
    members: Sequence[str]
    _queue: deque[_Request] = field(factory=deque, init=False)
    _current: _Request | None = field(default=None, init=False)
    _count: int = field(default=0, init=False)
    _leader: str | None = field(default=None, init=False)
    _last: str | None = field(default=None, init=False)
    _turn: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        # A client's first number has to be 1. It is asked until it is answered; in a later life the
        # answer is that it is old, and that is as good.
        first = _Request(
            lambda name, _: ownership.forget("-", epoch=0, client=name, number=1),
            lambda outcome: None,
            patient=True,
        )
        self._queue.append(first)

    def advance(
        self,
        record: Record,
        expected_epoch: int | None,
        then: Then,
        only_while: tuple[str, int] | None = None,
    ) -> None:
        """Write a record. See `novacron_agreement.ownership.Advance`."""
        self._put(
            lambda name, number: ownership.advance(
                record,
                expected_epoch=expected_epoch,
                only_while=only_while,
                client=name,
                number=number,
            ),
            then,
        )

    def read(self, machine: str, then: Then) -> None:
        """Read a record. All that was asked before is done or will never be."""
        # No record has epoch 0, so nothing is forgotten, and what is there is answered.
        self._put(
            lambda name, number: ownership.forget(machine, epoch=0, client=name, number=number),
            then,
        )

    def tick(self, now_ms: int) -> list[Ask]:
        """Time has passed: what is to be asked, or asked again."""
        given_up = self._current
        if given_up is not None and now_ms >= given_up.until_ms and not given_up.patient:
            self._current = None
            given_up.then(None)
        if self._current is None and self._queue:
            self._current = request = self._queue.popleft()
            self._count += 1
            request.number = (self.life << 32) + self._count
            request.command = request.make(self.node, request.number)
            request.until_ms, request.again_ms = now_ms + GIVE_UP_MS, now_ms
        request_now = self._current
        if request_now is None or now_ms < request_now.again_ms:
            return []
        request_now.again_ms = now_ms + AGAIN_MS
        return [Ask(self._whom(), request_now.number, request_now.command)]

    def said(self, now_ms: int, number: int, answer: bytes) -> list[Ask]:
        """A member's answer."""
        request = self._current
        if request is None or request.number != number:
            return []
        self._current, self._leader = None, self._last
        outcome = ownership.outcome(answer)
        request.then(None if outcome.error else outcome)
        return self.tick(now_ms)

    def refused(self, now_ms: int, number: int, leader: str | None) -> list[Ask]:
        """A member does not lead; it may know who does."""
        request = self._current
        if request is None or request.number != number:
            return []
        known, self._leader = self._leader, leader
        if leader is not None and leader != known:
            request.again_ms = now_ms
        return self.tick(now_ms)

    def _put(self, make: Callable[[str, int], bytes], then: Then) -> None:
        self._queue.append(_Request(make, then))

    def _whom(self) -> str:
        self._last, self._leader = self._leader, None  # if it is silent, another one next time
        if self._last is None:
            self._turn += 1
            self._last = self.members[self._turn % len(self.members)]
        return self._last
