"""The table of members that one node holds, with digests by which two tables are compared."""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import gcd

from novacron_consensus_gossip._values import Member, State
from novacron_consensus_gossip._wire import BUCKET_BYTES, BUCKETS


@lru_cache(maxsize=1 << 16)
def bucket_of(name: str) -> int:
    """In which bucket a member is compared; equal on all nodes."""
    return blake2b(name.encode(), digest_size=1).digest()[0] % BUCKETS


@lru_cache(maxsize=1 << 16)
def _mark(name: str, incarnation: int, life: int) -> int:
    told = blake2b(f"{name} {incarnation} {life}".encode(), digest_size=BUCKET_BYTES).digest()
    return int.from_bytes(told, "big")


class Start:
    """A table to begin with, never changed, so that many tables of one process can share it."""

    __slots__ = ("digests", "live", "members", "names")

    def __init__(self, members: Mapping[str, Member]) -> None:
        self.members = members
        self.names: Sequence[str] = tuple(members)
        self.digests = array("Q", bytes(8 * BUCKETS))
        self.live = 0
        for member in members.values():
            if member.state <= State.SUSPECT:
                self.live += 1
                self.digests[bucket_of(member.name)] ^= _mark(
                    member.name, member.incarnation, member.life
                )


NOBODY = Start({})


class Members:
    """Every member that is known, the node itself among them.

    The digests cover the living with their incarnations and lives. Who is suspected does not count,
    because that is about to change; nor who is dead, because nodes forget the dead at different
    times.

    Attributes:
        live: How many are alive or suspected.
    """

    __slots__ = ("_added", "_digests", "_gone", "_own", "_place", "_start", "live")

    def __init__(self, start: Start = NOBODY) -> None:
        self._start = start
        self._own: dict[str, Member] = {}
        # The start's members that were removed; it is shared, so it cannot be changed.
        self._gone: set[str] = set()
        # The names that came later, in an order by which one can be picked, and where each is.
        self._added: list[str] = []
        self._place: dict[str, int] = {}
        self._digests = array("Q", start.digests)
        self.live = start.live

    def __len__(self) -> int:
        return len(self._start.names) - len(self._gone) + len(self._added)

    def __iter__(self) -> Iterator[Member]:
        for name in self._start.names:
            if name not in self._gone:
                yield self._own.get(name) or self._start.members[name]
        for name in self._added:
            yield self._own[name]

    def get(self, name: str) -> Member | None:
        found = self._own.get(name)
        if found is None and name not in self._gone:
            return self._start.members.get(name)
        return found

    def put(self, member: Member) -> None:
        """Hold this of a member from now on."""
        name = member.name
        before = self.get(name)
        self._count(before)
        self._count(member, 1)
        self._own[name] = member
        if before is None:
            # One that was in the start and was forgotten comes back as a new one.
            self._place[name] = len(self._added)
            self._added.append(name)

    def remove(self, name: str) -> None:
        """Forget a member."""
        before = self.get(name)
        if before is None:
            return
        self._count(before)
        self._own.pop(name, None)
        place = self._place.pop(name, None)
        if place is None:
            self._gone.add(name)
            return
        last = self._added.pop()
        if last != name:
            self._added[place] = last
            self._place[last] = place

    def _count(self, member: Member | None, sign: int = -1) -> None:
        if member is not None and member.state <= State.SUSPECT:
            self.live += sign
            self._digests[bucket_of(member.name)] ^= _mark(
                member.name, member.incarnation, member.life
            )

    # Comparing.

    def digests(self) -> bytes:
        """One digest per bucket."""
        told = array("Q", self._digests)
        if sys.byteorder == "little":  # on the wire the most significant byte comes first
            told.byteswap()
        return told.tobytes()

    def differing(self, digests: bytes) -> list[int]:
        """The buckets in which somebody who sent these digests holds something else."""
        ours = self.digests()
        size = BUCKET_BYTES
        spans = (slice(n * size, (n + 1) * size) for n in range(BUCKETS))
        return [n for n, span in enumerate(spans) if ours[span] != digests[span]]

    def in_buckets(self, buckets: Sequence[int]) -> dict[int, list[Member]]:
        """All members in these buckets, the dead too."""
        found: dict[int, list[Member]] = {number: [] for number in sorted(set(buckets))}
        for member in self:
            if (number := bucket_of(member.name)) in found:
                found[number].append(member)
        return found

    # Picking.

    def at(self, index: int) -> Member | None:
        """The member at a place below `places`; None if it was forgotten."""
        first = len(self._start.names)
        if index < first:
            name = self._start.names[index]
            return None if name in self._gone else self.get(name)
        index -= first
        return self._own[self._added[index]] if index < len(self._added) else None

    @property
    def places(self) -> int:
        return len(self._start.names) + len(self._added)

    def pick(
        self, rng: random.Random, count: int, wanted: Callable[[Member], bool]
    ) -> list[Member]:
        """Up to ``count`` different members that are wanted, at random."""
        places = self.places
        found: dict[str, Member] = {}
        chance = rng.random
        for _ in range(4 * count + 4):
            if not places or len(found) == count:
                return list(found.values())
            member = self.at(int(chance() * places))
            if member is not None and member.name not in found and wanted(member):
                found[member.name] = member
        if len(found) < count:  # few are wanted: look at all
            rest = [one for one in self if one.name not in found and wanted(one)]
            for member in rng.sample(rest, min(count - len(found), len(rest))):
                found[member.name] = member
        return list(found.values())


class Round:
    """Goes through all places of a table in an order of its own, then in another one.

    An order is a stride that shares no factor with the number of places: it takes no memory, and
    nobody waits longer than one round (SWIM, section 4.3).
    """

    __slots__ = ("_at", "_left", "_places", "_stride")

    def __init__(self) -> None:
        self._places = self._left = self._at = 0
        self._stride = 1

    def next(self, places: int, rng: random.Random) -> int:
        """The next place; ``places`` must not be 0."""
        # Who came since the round began waits for the next one; a shrunken table begins anew.
        if not self._left or places < self._places:
            self._places = self._left = places
            self._at = int(rng.random() * places)
            self._stride = 1 + int(rng.random() * (places - 1)) if places > 1 else 1
            while gcd(self._stride, places) != 1:
                self._stride = self._stride % places + 1
        self._left -= 1
        self._at = (self._at + self._stride) % self._places
        return self._at
