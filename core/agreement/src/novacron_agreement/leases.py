"""How long a node may run its machines without hearing from the register, and who may take them
over when it is away for longer.

A register alone says who owns a machine; it cannot tell a node that is cut off. So each node keeps
a lease: a record of its own in the same register, ``lease/NODE``, whose epoch it raises again and
again. Two rules make that safe without clocks that agree:

1. The owner counts from the moment it *asked* for the renewal, the others from the moment they
   *saw* it, which is later. They wait longer than the owner by all that clocks may differ in rate.
   (Gray and Cheriton, "Leases: An Efficient Fault-Tolerant Mechanism for Distributed File Cache
   Consistency", 1989.)
2. Who wants to take over first breaks the lease by writing that record over the very epoch that it
   has seen for so long. A renewal in between makes that fail; a break makes later renewals fail.
   Machines are taken by records that are written only while the break holds, and over the epoch
   that was seen (`ownership.Advance.only_while`).

A node whose lease has run out pauses its machines: they lose nothing but time. That is the price of
a takeover, and only of it: with ``takeover`` off, nobody can take a machine from a node that is cut
off, so it may let them run, and a machine whose node is lost for good waits for a person.

What pauses them has to outlive the node's own process, which may be dead or stand still: see
`Guard`. No I/O here; times are milliseconds of a clock that only goes forward and stops for nothing
but a machine that is off.
"""

from __future__ import annotations

import math
from typing import Final

from attrs import define, field, frozen, validators

from novacron_agreement.ownership import Record

PREFIX: Final = "lease/"
# A hand-over that began at epoch e writes e + 1 and e + 2 at most, and some of that whatever holds.
# A takeover goes beyond, so that nothing of such a session can be written over it.
TAKEOVER_STEP: Final = 3

_POSITIVE: Final = [validators.instance_of(int), validators.ge(1)]


@frozen(kw_only=True)
class LeaseSettings:
    """The same for all nodes that use one register.

    Attributes:
        lease_ms: How long a node may run its machines after it has asked for a renewal that was
            granted. Short leases shorten the time until a lost node's machines run elsewhere;
            long ones let machines run on through longer cuts.
        renew_ms: How often it asks. At most a third of ``lease_ms``.
        drift: By what share two nodes' clocks may differ in rate.
        takeover: Whether the machines of a node whose lease has run out may be taken over. If not,
            leases never run out.
    """

    lease_ms: int = field(default=10_000, validator=_POSITIVE)
    renew_ms: int = field(default=2_500, validator=_POSITIVE)
    drift: float = field(default=0.01, validator=[validators.ge(0), validators.lt(1)])
    takeover: bool = True

    def __attrs_post_init__(self) -> None:
        if 3 * self.renew_ms > self.lease_ms:
            raise ValueError(
                f"renew_ms is {self.renew_ms} and lease_ms {self.lease_ms}: one lost renewal must "
                "not pause machines, so renew at least three times per lease"
            )

    @property
    def takeover_ms(self) -> int:
        """How long nothing may be seen of a lease before it may be broken."""
        return math.ceil(self.lease_ms * (1 + self.drift) / (1 - self.drift)) + 1


def lease_of(node: str) -> str:
    """The name of the record that is a node's lease."""
    return PREFIX + node


@frozen
class Look:
    """Read this node's lease record, so that nothing asked for before can change it any more; then
    `Lease.looked`."""


@frozen
class Renew:
    """Write this record over that epoch; then `Lease.written`. It may be repeated as it is."""

    record: Record
    expected_epoch: int


@frozen
class Guard:
    """Have all machines that may run here paused at that time, unless another `Guard` moves it;
    None for never.

    The driver gives this to what keeps the machines, not to itself: the guard must do it when the
    node's process is dead or stands still.
    """

    until_ms: int | None


@frozen
class Confirm:
    """The lease is new, or was broken in between: before any machine may run by it, its record has
    to be read, so that nothing asked for before can change it any more. Those that somebody else
    owns by now must not run."""


LeaseEffect = Look | Renew | Guard | Confirm


@define
class Lease:
    """A node's own lease.

    Args:
        node: The node's name.
        life: Differs from life to life of the node's process, so that an old life's request that
            comes through late is not taken for this one's.

    Attributes:
        until_ms: When it runs out; 0 if there is none.
    """

    node: str
    life: str
    settings: LeaseSettings
    until_ms: int = field(default=0, init=False)
    _epoch: int | None = field(default=None, init=False)
    _looking: bool = field(default=False, init=False)
    _asked: tuple[Record, int] | None = field(default=None, init=False)
    _due_ms: int = field(default=0, init=False)
    _count: int = field(default=0, init=False)
    _confirmed: bool = field(default=False, init=False)

    def holds(self, now_ms: int) -> bool:
        """Whether machines that were confirmed may run now."""
        if not self.settings.takeover:
            return self.until_ms > 0
        return now_ms < self.until_ms

    def tick(self, now_ms: int) -> list[LeaseEffect]:
        """Time has passed; to be called a few times per ``renew_ms``."""
        if self._asked is not None or self._looking or now_ms < self._due_ms:
            return []
        if self._epoch is None:
            self._looking = True
            return [Look()]
        self._due_ms = now_ms + self.settings.renew_ms
        self._count += 1
        record = Record(
            lease_of(self.node), self.node, self._epoch + 1, f"{self.life}.{self._count}"
        )
        self._asked = (record, now_ms)
        return [Renew(record, self._epoch)]

    def looked(self, now_ms: int, present: Record | None) -> list[LeaseEffect]:
        """What the lease's record is."""
        if not self._looking:
            return []
        self._looking = False
        self._epoch = present.epoch if present else 0
        return self.tick(now_ms)

    def written(self, now_ms: int, done: bool, present: Record | None) -> list[LeaseEffect]:
        """What became of the last `Renew`.

        Args:
            done: Whether its record was written.
            present: What holds.
        """
        if self._asked is None:
            return []
        (record, asked_ms), self._asked = self._asked, None
        if not done:
            # Broken, or renewed late by an earlier life. Begin anew, with nothing believed.
            self._epoch = present.epoch if present else 0
            self.until_ms, self._confirmed, self._due_ms = 0, False, now_ms
            return self.tick(now_ms)
        self._epoch = record.epoch
        if asked_ms + self.settings.lease_ms > self.until_ms:
            self.until_ms = asked_ms + self.settings.lease_ms
        # In this order: what was confirmed before a break must not be guarded by the new lease.
        effects: list[LeaseEffect] = [] if self._confirmed else [Confirm()]
        self._confirmed = True
        return [*effects, Guard(self.until_ms if self.settings.takeover else None)]

    def unanswered(self) -> list[LeaseEffect]:
        """Nobody knows what became of the last `Look` or `Renew`: ask again, from the beginning."""
        self._asked, self._looking, self._epoch, self._due_ms = None, False, None, 0
        self._confirmed = False
        return []


@frozen
class Break:
    """Write this record over that epoch; then `Watch.broken`."""

    node: str
    record: Record
    expected_epoch: int


@frozen
class _Seen:
    record: Record
    since_ms: int


@define
class Watch:
    """What a node sees of the others' leases.

    Args:
        node: The one that watches.
        life: As of `Lease`.
    """

    node: str
    life: str
    settings: LeaseSettings
    _seen: dict[str, _Seen] = field(factory=dict, init=False)
    _count: int = field(default=0, init=False)

    def see(self, now_ms: int, record: Record | None) -> None:
        """A lease's record as this node's copy of the register has it, however old that is."""
        if record is None:
            return
        before = self._seen.get(record.machine)
        if before is None or before.record != record:
            self._seen[record.machine] = _Seen(record, now_ms)

    def run_out(self, now_ms: int, node: str) -> Break | None:
        """How to break a node's lease, if that may be done now."""
        seen = self._seen.get(lease_of(node))
        wait_ms = self.settings.takeover_ms
        if seen is None or not self.settings.takeover or now_ms - seen.since_ms <= wait_ms:
            return None
        self._count += 1
        record = Record(
            lease_of(node), self.node, seen.record.epoch + 1, f"{self.life}.break.{self._count}"
        )
        return Break(node, record, seen.record.epoch)


def taken_over(present: Record, by: str, broken: Record) -> tuple[Record, tuple[str, int]]:
    """The record by which a machine is taken from a node whose lease was broken.

    Args:
        present: The machine's record; it is to be written over that epoch.
        broken: The record that broke its owner's lease.
    Returns: the record, and what must hold while it is written (`ownership.advance`).
    """
    record = Record(present.machine, by, present.epoch + TAKEOVER_STEP, f"from {present.owner}")
    return record, (broken.machine, broken.epoch)
