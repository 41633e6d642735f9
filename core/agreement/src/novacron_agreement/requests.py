"""What a node asks of a replicated register of ownership, such that what it reads is final.

A hand-over that has no answer to its `advance` reads what holds, and acts on that for good. If the
advance were still on its way and took effect after the read, two nodes would run the machine. So a
node is one client of the register for all its lives, asks one thing at a time, with numbers that
only grow, and reads through the log too: once a read is answered, all that was asked before it is
done or will be refused (see `Sessions`). The simulation ``ownership`` finds what happens without.

`Requests` is without I/O: `registrar` carries its commands to a register, and the simulator does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, field, frozen

from novacron_agreement import ownership
from novacron_agreement.machine import FORGOTTEN
from novacron_agreement.ownership import Outcome, Record

# Requests of one life; the bits above them hold the life.
_COUNT_BITS: Final = 24
# A client's first number.
_FIRST: Final = 1
# A machine that nobody has: names have at least one letter.
_NONE: Final = ""

# Gets the outcome; or None, if what was asked may or may not be done, or why it was not, as far as
# the register said so.
Then = Callable[[Outcome | None, str], None]


@frozen
class Command:
    """What is to be asked of the register now, and repeated until it is answered or given up.

    Attributes:
        introduces: Whether it only says who asks, so that nobody is in doubt if it is not answered.
    """

    number: int
    command: bytes
    introduces: bool = False


@define(eq=False)
class _Request:
    make: Callable[[str, int], bytes]
    then: Then
    again: bool = False


@define(eq=False)
class Requests:
    """One life of a node as a client. See the module.

    Args:
        client: The node's name as a client of the register; no other node has it.
        life: From 1, and higher than in any earlier life of the node.
    """

    client: str
    life: int
    _queue: deque[_Request] = field(factory=deque, init=False)
    _under_way: Command | None = field(default=None, init=False)
    _count: int = field(default=0, init=False)
    _known: bool = field(default=False, init=False)

    def advance(
        self,
        record: Record,
        expected_epoch: int | None,
        then: Then,
        only_while: tuple[str, int] | None = None,
    ) -> None:
        """Write a record; see `ownership.Advance`."""

        def make(client: str, number: int) -> bytes:
            return ownership.advance(
                record,
                expected_epoch=expected_epoch,
                only_while=only_while,
                client=client,
                number=number,
            )

        self._queue.append(_Request(make, then))

    def forget(self, machine: str, epoch: int, then: Then) -> None:
        """Remove a record; see `ownership.Forget`."""

        def make(client: str, number: int) -> bytes:
            return ownership.forget(machine, epoch=epoch, client=client, number=number)

        self._queue.append(_Request(make, then))

    def read(self, machine: str, then: Then) -> None:
        """What holds for a machine; nothing that was asked for before changes it any more."""
        # No record has epoch 0: nothing is forgotten, and what is there is answered.
        self.forget(machine, 0, then)

    def settle(self, then: Then) -> None:
        """Learn that all that was asked for before is done or never will be."""
        self.read(_NONE, then)

    def next(self) -> Command | None:
        """What to ask now; None while something is under way, or if there is nothing to ask."""
        if self._under_way is not None or not self._queue:
            return None
        if self._known:
            self._count += 1
            number = (self.life << _COUNT_BITS) + self._count
            command = self._queue[0].make(self.client, number)
        else:
            # A register that knows the client answers that this is old, and that is as good.
            number = _FIRST
            command = ownership.forget(_NONE, epoch=0, client=self.client, number=number)
        self._under_way = Command(number, command, introduces=not self._known)
        return self._under_way

    def said(self, number: int, answer: bytes) -> bool:
        """The register's answer; whether it was waited for. Raises ValueError if it is none."""
        if self._under_way is None or self._under_way.number != number:
            return False
        outcome = ownership.outcome(answer)
        asked, self._under_way = self._under_way, None
        if asked.introduces:
            self._known = True
            return True
        request = self._queue.popleft()
        if outcome.error == FORGOTTEN and not request.again:
            # Others came in between, more than the register remembers. Nothing was done.
            self._known, request.again = False, True
            self._queue.appendleft(request)
        else:
            request.then(None if outcome.error else outcome, outcome.error)
        return True

    def give_up(self, number: int) -> None:
        """No answer came in time: whoever asked is told that it is in doubt."""
        if self._under_way is not None and self._under_way.number == number:
            self._under_way = None
            self._queue.popleft().then(None, "")
