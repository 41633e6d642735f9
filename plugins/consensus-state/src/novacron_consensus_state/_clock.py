"""A hybrid logical clock: close to the time of day, and never behind what it has heard.

Kulkarni et al., "Logical Physical Clocks", OPODIS 2014. A stamp is one integer: milliseconds since
1970 in its upper bits, a counter in the lower 16. It decides only between values that were written
without knowledge of each other; a value that its writer had seen is replaced whatever the clocks
say, so a wrong clock cannot make a later write lose.
"""

from __future__ import annotations

from typing import Final

COUNTER_BITS: Final = 16
STAMP_MAX: Final = (1 << 63) - 1
# A stamp that is further ahead is not followed, or one wrong clock would lead all others astray.
AHEAD_MS_MAX: Final = 60_000


class HybridClock:
    """Stamps for one replica's events.

    Args:
        offset_ms: What to add to the driver's monotonic milliseconds for milliseconds since 1970.
    """

    __slots__ = ("_last", "offset_ms")

    def __init__(self, offset_ms: int = 0) -> None:
        self.offset_ms = offset_ms
        self._last = 0

    def stamp(self, now_ms: int) -> int:
        """A stamp higher than every one given or followed before."""
        wall = max(0, now_ms + self.offset_ms) << COUNTER_BITS
        self._last = max(self._last + 1, wall)
        return self._last

    def heard(self, stamp: int, now_ms: int) -> int:
        """Follow another's stamp; returns by how many milliseconds it is ahead of this clock."""
        wall = max(0, now_ms + self.offset_ms)
        ahead = (stamp >> COUNTER_BITS) - wall
        if ahead <= AHEAD_MS_MAX:
            self._last = max(self._last, stamp)
        return ahead

    def restored(self, stamp: int) -> None:
        """Follow a stamp of our own, read back after a restart."""
        self._last = max(self._last, stamp)
