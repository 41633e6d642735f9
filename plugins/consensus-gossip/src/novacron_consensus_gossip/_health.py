"""Lifeguard (Dadgar, Phillips, Currey 2018): how far a node trusts its own judgement, and for how
long it suspects before it believes.

A node that is itself slow or cut off sees everybody fail. Its local health gets worse by what only
its own trouble explains, and it then gives others more time. A suspicion begins long and gets
shorter with each member that came to it independently.
"""

from __future__ import annotations

from math import log, log10

from novacron_consensus_gossip._values import Timing


class Health:
    """Local health: 0 is good.

    Attributes:
        score: From 0 to the setting's maximum.
    """

    __slots__ = ("_most", "score")

    def __init__(self, most: int) -> None:
        self.score = 0
        self._most = most

    def change(self, by: int) -> None:
        """Worse if above 0."""
        self.score = min(self._most, max(0, self.score + by))

    @property
    def stretch(self) -> int:
        """By how much the times for others are multiplied."""
        return self.score + 1


class Suspicion:
    """One suspected member.

    Attributes:
        incarnation: At which it is suspected.
        began_ms: When.
        first: Who came to it first, as far as is known here.
        by: Who came to it, the first included.
    """

    __slots__ = ("_least", "_most", "_needed", "began_ms", "by", "first", "incarnation")

    def __init__(self, timing: Timing, incarnation: int, by: str, live: int, now_ms: int) -> None:
        self.incarnation = incarnation
        self.began_ms = now_ms
        self.first = by
        self.by = {by}
        periods = max(timing.suspicion_floor, timing.suspicion * log10(max(1, live)))
        self._least = int(periods * timing.period_ms)
        self._most = int(self._least * timing.suspicion_stretch)
        # Neither the suspected one nor the first accuser can confirm.
        self._needed = max(0, min(timing.confirmations, live - 2))

    def confirm(self, by: str) -> bool:
        """Another one came to it. False if that changes nothing."""
        if by in self.by or len(self.by) > self._needed:
            return False
        self.by.add(by)
        return True

    @property
    def look_ms(self) -> int | None:
        """When to look once more before it is believed; None if it is well confirmed.

        Where most have heard the refutation, who missed it is left with a long suspicion.
        """
        ends = self.ends_ms
        return None if ends - self.began_ms <= self._least else (self.began_ms + ends) // 2

    @property
    def ends_ms(self) -> int:
        """When it becomes a belief (Lifeguard, section 3.2)."""
        if not self._needed:
            return self.began_ms + self._least
        gone = log(len(self.by)) / log(self._needed + 1)
        length = self._most - (self._most - self._least) * gone
        return self.began_ms + max(self._least, int(length))
