"""Timers of a core: what shall happen when, without a clock."""

from __future__ import annotations

from heapq import heappop, heappush

Key = tuple[str, int | str]


class Timers:
    """One time per key. Setting a key again replaces its time."""

    __slots__ = ("_at", "_heap")

    def __init__(self) -> None:
        self._at: dict[Key, int] = {}
        self._heap: list[tuple[int, Key]] = []

    def __len__(self) -> int:
        return len(self._at)

    def set(self, kind: str, which: int | str, at_ms: int) -> None:
        key = (kind, which)
        self._at[key] = at_ms
        heappush(self._heap, (at_ms, key))

    def cancel(self, kind: str, which: int | str = 0) -> None:
        self._at.pop((kind, which), None)

    def at(self, kind: str, which: int | str = 0) -> int | None:
        return self._at.get((kind, which))

    def next(self) -> int | None:
        """The earliest time."""
        heap = self._heap
        # What was cancelled or set anew still lies in the heap.
        while heap and self._at.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def take(self, now_ms: int) -> Key | None:
        """Remove and return a key whose time has come."""
        at = self.next()
        if at is None or at > now_ms:
            return None
        key = heappop(self._heap)[1]
        del self._at[key]
        return key

    def clear(self, kind: str) -> None:
        """Cancel all of a kind."""
        for key in [key for key in self._at if key[0] == kind]:
            del self._at[key]

    def shift(self, kind: str, by_ms: int) -> None:
        """Put off all of a kind."""
        for (of_kind, which), at in list(self._at.items()):
            if of_kind == kind:
                self.set(kind, which, at + by_ms)
