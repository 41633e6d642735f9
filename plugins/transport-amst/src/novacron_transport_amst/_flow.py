"""What a link's streams did together over the last moments. Without I/O.

All in new bytes, each counted once, as the link counts what it hands to its streams: a path that
loses a packet carries it again, and where as much arrives as is offered nothing piles up, whatever
is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from attrs import define, field
from novacron import PathReading

# Looks are kept so long, and so many round trips.
KEPT_S: Final = 2.0
KEPT_ROUND_TRIPS: Final = 6
# Known enough to decide from.
KNOWN_S: Final = 0.25
STREAMS_KNOWN: Final = 256

_Counts = tuple[float, float]  # offered, delivered: bytes


@define
class Flow:
    """Sums over a link's streams, and their rates in bytes per second."""

    _looks: deque[tuple[float, _Counts]] = field(factory=deque, init=False)
    _last: dict[int, _Counts] = field(factory=dict, init=False)
    _sum: _Counts = field(default=(0.0, 0.0), init=False)

    def look(self, now_s: float, readings: Sequence[PathReading], rtt_s: float) -> None:
        """Take in new readings; what a stream did before it was first looked at does not count."""
        sums = list(self._sum)
        for reading in readings:
            offered = float(reading.sent_bytes - reading.resent_bytes)
            now = (offered, float(reading.delivered_bytes))
            before = self._last.pop(reading.stream, now)
            for index in range(2):
                sums[index] += now[index] - before[index]
            self._last[reading.stream] = now
        while len(self._last) > STREAMS_KNOWN:
            del self._last[next(iter(self._last))]
        self._sum = (sums[0], sums[1])
        if self._looks and now_s <= self._looks[-1][0]:
            self._looks.pop()
        self._looks.append((now_s, self._sum))
        kept_s = max(KEPT_S, KEPT_ROUND_TRIPS * rtt_s)
        while len(self._looks) > 2 and now_s - self._looks[1][0] >= kept_s:
            self._looks.popleft()

    def known(self) -> bool:
        return len(self._looks) > 2 and self._looks[-1][0] - self._looks[0][0] >= KNOWN_S

    def offered(self, span_s: float, ago_s: float = 0.0) -> float:
        """What left this host for the first time, over ``span_s`` that ended ``ago_s`` ago."""
        return self._rate(0, span_s, ago_s)

    def arrives(self, span_s: float) -> float:
        """What arrived, over the last ``span_s``."""
        return self._rate(1, span_s, 0.0)

    def _rate(self, index: int, span_s: float, ago_s: float) -> float:
        if not self._looks:
            return 0.0
        last_s, first_s = self._looks[-1][0], self._looks[0][0]
        end_s = max(last_s - ago_s, first_s)
        begin_s = max(end_s - span_s, first_s)
        if end_s <= begin_s:
            return 0.0
        return (self._at(index, end_s) - self._at(index, begin_s)) / (end_s - begin_s)

    def _at(self, index: int, at_s: float) -> float:
        """A count at a time between looks, as if it had grown evenly."""
        after_s, after = self._looks[-1]
        for then_s, then in reversed(self._looks):
            if then_s <= at_s:
                if after_s <= then_s:
                    return then[index]
                part = (at_s - then_s) / (after_s - then_s)
                return then[index] + part * (after[index] - then[index])
            after_s, after = then_s, then
        return after[index]
