"""Broadcasts to all members by epidemic broadcast trees (Plumtree: Leitão and others, 2007).

Each member has a few neighbours. A broadcast goes at once to the eager ones and is only announced
to the lazy ones. Who gets one a second time makes that way lazy; who hears of one that does not
come asks for it, which makes that way eager again. So the eager ways become a tree that repairs
itself, and each broadcast crosses the cluster with hardly a copy too many.

The paper takes its neighbours from a protocol of its own. Here every member knows all others, so
the neighbours follow from the names: members stand on several rings, each in an order of its own
(by hash), and one's neighbours are those before and behind on each. That is symmetric where tables
agree, never falls apart, and is, like all graphs of random rings, well connected.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b

from novacron_consensus_gossip._desk import Desk
from novacron_consensus_gossip._effects import Deliver
from novacron_consensus_gossip._values import Member, State
from novacron_consensus_gossip._wire import (
    ANNOUNCED_MAX,
    ID_BYTES,
    Announce,
    Graft,
    Payload,
    Prune,
)

RINGS = 3
SEEN_MAX = 65_536
MISSING_MAX = 1_024
SOURCES_MAX = 8


@lru_cache(maxsize=1 << 16)
def places(name: str) -> tuple[int, ...]:
    """Where a member stands on each ring."""
    told = blake2b(name.encode(), digest_size=8 * RINGS).digest()
    return tuple(int.from_bytes(told[8 * n : 8 * n + 8], "big") for n in range(RINGS))


def neighbours(me: str, others: Iterable[str]) -> set[str]:
    """Who stands before and behind ``me`` on each ring."""
    mine = places(me)
    size = 1 << 64
    nearest: list[tuple[int, str]] = [(size, "")] * (2 * RINGS)
    for name in others:
        for ring, place in enumerate(places(name)):
            ahead = (place - mine[ring]) % size
            if ahead < nearest[2 * ring][0]:
                nearest[2 * ring] = (ahead, name)
            if size - ahead < nearest[2 * ring + 1][0]:
                nearest[2 * ring + 1] = (size - ahead, name)
    return {name for _, name in nearest if name}


class Tree:
    """See the module.

    Attributes:
        lazy: The neighbours to whom broadcasts are only announced.
        missing: Broadcasts that were announced and have not come, with those who have them.
    """

    def __init__(self, desk: Desk, life: int) -> None:
        self._desk = desk
        self._life = life
        self._count = 0
        self._neighbours: set[str] | None = None  # not known
        self.lazy: set[str] = set()
        self.missing: dict[bytes, list[str]] = {}
        # What was delivered, with when; the oldest first.
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self._kept: OrderedDict[bytes, Payload] = OrderedDict()
        self._kept_bytes = 0

    @property
    def neighbours(self) -> set[str]:
        found = self._neighbours
        if found is None:
            desk = self._desk
            others = (one.name for one in desk.members if desk.is_other(one))
            found = self._neighbours = neighbours(desk.me.name, others)
            self.lazy &= found
        return found

    def member_changed(self, member: Member, state: State | None) -> None:
        """Somebody came or went."""
        found = self._neighbours
        if found is None or member.name == self._desk.me.name:
            return
        gone = state is None or state >= State.DEAD
        if gone and member.name in found:
            self._neighbours = None
            self.lazy.discard(member.name)
        elif not gone and member.name not in found:
            self._neighbours = neighbours(self._desk.me.name, (*found, member.name))
            self.lazy &= self._neighbours

    # Sending.

    def broadcast(self, topic: str, body: bytes) -> bytes:
        """Send something to all members. Returns its id."""
        self._count += 1
        told = f"{self._desk.me.name} {self._life} {self._count}".encode()
        number = blake2b(told, digest_size=ID_BYTES).digest()
        message = Payload(self._desk.me.name, number, self._desk.me.name, topic, 0, body)
        self._keep(message)
        self._pass_on(message, "")
        return number

    def _pass_on(self, message: Payload, came_from: str) -> None:
        for name in sorted(self.neighbours):
            if name == came_from:
                continue
            if name in self.lazy:
                self._send(name, Announce(self._desk.me.name, (message.id,)))
            else:
                self._stream(name, message)

    def _send(self, name: str, message: Announce | Graft | Prune) -> None:
        if (member := self._desk.members.get(name)) is not None:
            self._desk.send(member.address, message)

    def _stream(self, name: str, message: Payload) -> None:
        if (member := self._desk.members.get(name)) is not None:
            self._desk.stream(member.address, message)

    # Receiving.

    def arrived(self, message: Payload) -> None:
        """A broadcast, for the first time or not."""
        sender = message.who
        if message.id in self._seen:
            self._desk.counts["broadcasts-repeated"] += 1
            self.lazy.add(sender)
            self.lazy &= self.neighbours
            self._send(sender, Prune(self._desk.me.name))
            return
        self.lazy.discard(sender)
        if self.missing.pop(message.id, None) is not None:
            self._desk.timers.cancel("missing", message.id.hex())
        me = self._desk.me.name
        on = Payload(
            me, message.id, message.origin, message.topic, min(255, message.hops + 1), message.body
        )
        self._keep(on)
        self._desk.counts["broadcasts"] += 1
        self._desk.do(Deliver(message.origin, message.topic, message.body))
        self._pass_on(on, sender)

    def announced(self, sender: str, ids: Iterable[bytes]) -> None:
        """Somebody has these."""
        desk = self._desk
        for number in ids:
            if number in self._seen:
                continue
            sources = self.missing.get(number)
            if sources is None:
                if len(self.missing) >= MISSING_MAX:
                    desk.counts["announcements-refused"] += 1
                    continue
                sources = self.missing[number] = []
                desk.timers.set("missing", number.hex(), desk.now + desk.timing.graft_ms)
            if sender not in sources and len(sources) < SOURCES_MAX:
                sources.append(sender)

    def still_missing(self, number: bytes) -> None:
        """What was announced has not come: ask the next one who has it."""
        sources = self.missing.get(number)
        if not sources:
            self.missing.pop(number, None)  # should anybody still have it, we hear of it again
            return
        desk = self._desk
        source = sources.pop(0)
        self.lazy.discard(source)
        self._send(source, Graft(desk.me.name, number))
        desk.timers.set("missing", number.hex(), desk.now + desk.timing.graft_ms)

    def grafted(self, sender: str, number: bytes) -> None:
        """Somebody wants a broadcast, and the next ones at once."""
        self.lazy.discard(sender)
        message = self._kept.get(number)
        if message is not None:
            self._stream(sender, message)

    def pruned(self, sender: str) -> None:
        """Somebody gets broadcasts from elsewhere."""
        if sender in self.neighbours:
            self.lazy.add(sender)

    # Keeping.

    def recent(self) -> tuple[bytes, ...]:
        """The newest that can be had here."""
        self._expire()
        return tuple(list(self._kept)[-ANNOUNCED_MAX:])

    def _keep(self, message: Payload) -> None:
        self._seen[message.id] = self._desk.now
        self._kept[message.id] = message
        self._kept_bytes += len(message.body)
        self._expire()

    def _expire(self) -> None:
        desk = self._desk
        timing = desk.timing
        while self._kept:
            oldest = next(iter(self._kept))
            old = desk.now - self._seen[oldest] > timing.keep_ms
            if not old and self._kept_bytes <= timing.keep_bytes:
                break
            self._kept_bytes -= len(self._kept.pop(oldest).body)
        # What is kept by anybody may still come again; after twice that time nothing does.
        while self._seen:
            oldest, at = next(iter(self._seen.items()))
            if desk.now - at <= 2 * timing.keep_ms and len(self._seen) <= SEEN_MAX:
                break
            del self._seen[oldest]
