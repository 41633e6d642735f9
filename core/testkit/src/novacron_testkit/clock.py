"""A clock that moves only when a test says so."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(2030, 1, 1, tzinfo=UTC)


class FakeClock:
    """Time as a value: pass ``clock.monotonic``, ``clock.now_ms`` or ``clock.utcnow`` to what asks.

    Timers set by `at` are called by `advance`, in the order of their time, each at its own time.
    """

    __slots__ = ("_count", "_now_ms", "_timers")

    def __init__(self, now_ms: int = 0) -> None:
        self._now_ms = now_ms
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        """Seconds, for what takes `time.monotonic`."""
        return self._now_ms / 1000

    def utcnow(self) -> datetime:
        """A date that has nothing to do with the host's."""
        return _EPOCH + timedelta(milliseconds=self._now_ms)

    def at(self, delay_ms: int, call: Callable[[], None]) -> None:
        """Call back once the clock has been advanced that far."""
        if delay_ms < 0:
            raise ValueError(f"a timer cannot be {-delay_ms} ms in the past")
        self._count += 1
        heapq.heappush(self._timers, (self._now_ms + delay_ms, self._count, call))

    def advance(self, ms: int) -> None:
        """Move on, calling the timers that fall due, also those that they set."""
        if ms < 0:
            raise ValueError("time does not run backwards")
        end = self._now_ms + ms
        while self._timers and self._timers[0][0] <= end:
            self._now_ms, _, call = heapq.heappop(self._timers)
            call()
        self._now_ms = end
