"""Recent events, kept to be sent again: until all members have them, or memory is short.

An event that every member has (it is causally stable: Baquero and Shoker, "Making CRDTs not so
eventual", 2014) is never asked for again and goes. What goes earlier, because the budget is spent,
is made up for by comparing trees.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from novacron_consensus_state._vector import Dot, Vector


class History:
    """Encoded events in the order in which they were seen here, which is a causal order.

    Args:
        bytes_max: What they may take together.
    """

    __slots__ = ("_by_origin", "_count", "_floor", "bytes_max", "nbytes")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.nbytes = 0
        self._count = 0
        # By origin: number -> (place in the order of arrival, the event).
        self._by_origin: dict[str, OrderedDict[int, tuple[int, bytes]]] = {}
        self._floor: Vector = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_origin.values()))

    def add(self, dot: Dot, raw: bytes) -> None:
        """Keep an event, the next one of its origin."""
        self._count += 1
        self._by_origin.setdefault(dot[0], OrderedDict())[dot[1]] = (self._count, raw)
        self.nbytes += len(raw)
        while self.nbytes > self.bytes_max:
            origin = min(
                (o for o, kept in self._by_origin.items() if kept),
                key=lambda o: next(iter(self._by_origin[o].values()))[0],
            )
            self._forget_first(origin)

    def get(self, dot: Dot) -> bytes | None:
        kept = self._by_origin.get(dot[0])
        found = kept.get(dot[1]) if kept else None
        return found[1] if found else None

    def skipped(self, vector: Mapping[str, int]) -> None:
        """Events up to here were taken over as states: they cannot be given to others."""
        for origin, number in vector.items():
            kept = self._by_origin.get(origin)
            while kept:
                self._forget_first(origin)
            self._floor[origin] = max(number, self._floor.get(origin, 0))

    def stable(self, vector: Mapping[str, int]) -> None:
        """All members have what this vector says."""
        for origin, number in vector.items():
            kept = self._by_origin.get(origin)
            while kept and next(iter(kept)) <= number:
                self._forget_first(origin)

    def reaches(self, after: Mapping[str, int], seen: Mapping[str, int]) -> bool:
        """Whether all events between the two vectors are here."""
        return all(
            self._floor.get(origin, 0) <= after.get(origin, 0)
            for origin, number in seen.items()
            if number > after.get(origin, 0)
        )

    def since(self, after: Mapping[str, int]) -> Iterable[bytes]:
        """The events that a vector has not seen, in a causal order."""

        def of(origin: str) -> Iterable[tuple[int, bytes]]:
            kept = self._by_origin[origin]
            first = max(after.get(origin, 0), self._floor.get(origin, 0)) + 1
            last = next(reversed(kept), 0)
            return (kept[number] for number in range(first, last + 1))

        merged = heapq.merge(*(of(o) for o, kept in self._by_origin.items() if kept))
        return (raw for _, raw in merged)

    def _forget_first(self, origin: str) -> None:
        number, (_, raw) = self._by_origin[origin].popitem(last=False)
        self.nbytes -= len(raw)
        self._floor[origin] = number
