"""How long the queue of a path is, told from round trips. Without I/O."""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define, field

# The shortest round trip of this long is the path without a queue; after that a route may have
# become longer.
BASE_S: Final = 13.0
# Looks of which the shortest queue counts: one acknowledgement may be late.
LOOKS: Final = 3


@define
class Queue:
    """Tells the queue, as a delay in seconds, from the round trip that is left without it.

    Attributes:
        base_s: The round trip without the queue.
    """

    base_s: float = field(default=0.0, init=False)
    _least: Least = field(factory=lambda: Least(BASE_S), init=False)
    _queues: deque[float] = field(factory=lambda: deque(maxlen=LOOKS), init=False)

    def look(self, now_s: float, rtt_s: float, floor_s: float) -> None:
        """Take in a round trip.

        Args:
            floor_s: The shortest one that the streams know of; it counts at the first look.
        """
        if not self._least.known:
            self._least.add(now_s, floor_s)
        self.base_s = self._least.add(now_s, rtt_s)
        self._queues.append(rtt_s - self.base_s)

    @property
    def delay_s(self) -> float:
        return min(self._queues, default=0.0)

    @property
    def newer_s(self) -> float:
        """By the last two looks: sooner, and less certain."""
        return min(list(self._queues)[-2:], default=0.0)

    @property
    def latest_s(self) -> float:
        """By the last look alone."""
        return self._queues[-1]

    def is_not_ours(self, now_s: float) -> None:
        """The queue of now is a longer route, a busy host, or others': it counts as the base."""
        rtt_s = self.base_s + self.delay_s
        self._least.forget()
        self.base_s = self._least.add(now_s, rtt_s)
        self._queues.clear()
        self._queues.append(0.0)


@define
class Least:
    """The least value of the last ``span_s``."""

    span_s: float
    _kept: deque[tuple[float, float]] = field(factory=deque, init=False)

    @property
    def known(self) -> bool:
        return bool(self._kept)

    def add(self, now_s: float, value: float) -> float:
        """The least, this value included. Only what may still become the least is kept."""
        kept = self._kept
        while kept and kept[-1][1] >= value:
            kept.pop()
        kept.append((now_s, value))
        while now_s - kept[0][0] > self.span_s:
            kept.popleft()
        return kept[0][1]

    def forget(self) -> None:
        self._kept.clear()
