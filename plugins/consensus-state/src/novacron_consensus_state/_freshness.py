"""How old a replica's picture of each peer is at the most, measured without comparing clocks.

A probe carries the asker's own time t. The answer says what the peer had seen when it answered,
which was at t or later. Once the asker has seen all of that, it has everything that the peer made
before t: its picture is at most (now - t) old. A peer also says how old its own picture of others
is, so a relay's answer tells about its whole region. The bound is strict whatever clocks say, as
long as they run at the same rate; it includes a whole round trip, so it errs on the old side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from attrs import define, field

from novacron_consensus_state._vector import Vector, at_least

_OPEN_MAX = 8


def member_of(origin: str) -> str:
    """The member that a replica belongs to: an origin is ``member/life``."""
    return origin.rpartition("/")[0] or origin


@define
class _Member:
    at_ms: int | None = None  # up to this time everything of it has been seen
    open: deque[tuple[int, Vector]] = field(factory=deque)  # what is still awaited, for which time
    ranges: dict[int, int] = field(factory=dict)  # the same for single key ranges


class Freshness:
    """See the module. ``members`` are the others."""

    def __init__(self, members: Iterable[str]) -> None:
        self._members = {name: _Member() for name in members}

    def set_members(self, members: Iterable[str]) -> None:
        self._members = {name: self._members.get(name, _Member()) for name in members}

    def promised(self, member: str, at_ms: int, theirs: Mapping[str, int], seen: Vector) -> None:
        """Once all of ``theirs`` that the member made is seen, the picture is of ``at_ms``."""
        one = self._members.get(member)
        if one is None or (one.at_ms is not None and at_ms <= one.at_ms):
            return
        need = {origin: n for origin, n in theirs.items() if member_of(origin) == member}
        if at_least(seen, need):
            one.at_ms = at_ms
            return
        # The oldest is met first and the newest counts most; those between may go.
        if len(one.open) >= _OPEN_MAX:
            del one.open[1]
        one.open.append((at_ms, need))

    def seen(self, seen: Vector) -> None:
        """Something new has been seen."""
        for one in self._members.values():
            while one.open and at_least(seen, one.open[0][1]):
                at_ms, _ = one.open.popleft()
                one.at_ms = max(at_ms, one.at_ms or at_ms)

    def compared(self, member: str, ranges: Iterable[int], at_ms: int) -> None:
        """These key ranges hold whatever the member had in them at that time."""
        one = self._members.get(member)
        if one is not None:
            for key_range in ranges:
                one.ranges[key_range] = max(at_ms, one.ranges.get(key_range, at_ms))

    def age_ms(self, member: str, now_ms: int, key_range: int | None = None) -> int | None:
        """How old the picture of a member is at the most; None if it was never whole."""
        one = self._members[member]
        at_ms = one.at_ms
        if key_range is not None and key_range in one.ranges:
            in_range = one.ranges[key_range]
            at_ms = in_range if at_ms is None else max(at_ms, in_range)
        return None if at_ms is None else max(0, now_ms - at_ms)

    def ages_ms(self, now_ms: int) -> dict[str, int]:
        """The age for each member whose picture was ever whole."""
        ages = {name: self.age_ms(name, now_ms) for name in self._members}
        return {name: age for name, age in ages.items() if age is not None}

    def worst(self, now_ms: int, key_range: int) -> tuple[str, int | None]:
        """The member that is seen the least freshly in a key range ("" if there is no other)."""
        found: tuple[str, int | None] = ("", 0)
        for name in sorted(self._members):
            age = self.age_ms(name, now_ms, key_range)
            if age is None:
                return name, None
            if found[1] is not None and (not found[0] or age > found[1]):
                found = (name, age)
        return found
