"""Which level to encode at: as much effort as the link leaves time for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from novacron import Pressure

# Processor time per byte, relative to level 1, over 256 MiB of programs and libraries (see the
# README). Only the steps that gain something for what they cost.
COSTS: Final[Mapping[int, float]] = MappingProxyType(
    {-7: 0.65, -5: 0.7, -3: 0.77, -1: 0.87, 1: 1, 2: 1.2, 3: 1.5, 5: 3, 7: 4.8, 9: 6.4, 12: 10}
)
LEVELS: Final = tuple(COSTS)

# Of the encoder's and the link's time together: below this share the link does not hold us up.
_LINK_IDLE: Final = 0.05
# What a step up may use of the time that is spent waiting for the link: some is kept, so that the
# step down does not follow at once.
_LINK_USED: Final = 0.8
# Seconds in a row that must ask for a step up; more after one that had to be taken back.
_PATIENCE: Final = 2
_PATIENCE_MAX: Final = 32
# A second in which less than this was done says nothing.
_BUSY_S_MIN: Final = 0.05


class Ladder:
    """Climbs while the link is the bottleneck, and steps down when the encoder is.

    Stepping down is quick, because a slow encoder slows the machine's copy; stepping up is patient,
    and becomes more so each time that it proves wrong.
    """

    def __init__(self, lowest: int, highest: int, start: int) -> None:
        self._levels = [level for level in LEVELS if lowest <= level <= highest] or [lowest]
        self._at = max(
            (index for index, level in enumerate(self._levels) if level <= start), default=0
        )
        self._votes = 0
        self._patience = _PATIENCE
        self._climbed = False

    @property
    def level(self) -> int:
        return self._levels[self._at]

    def adapt(self, pressure: Pressure) -> None:
        encode, link, read = pressure.encode_s, pressure.link_wait_s, pressure.read_wait_s
        busy = encode + link
        if not all(map(math.isfinite, (encode, link, read))) or min(encode, link, read) < 0:
            return
        if busy < _BUSY_S_MIN:
            return
        if link < busy * _LINK_IDLE and encode > read:
            self._votes = 0
            if self._at:
                self._at -= 1
                if self._climbed:
                    self._patience = min(self._patience * 2, _PATIENCE_MAX)
                self._climbed = False
            return
        if self._at + 1 < len(self._levels) and self._next_cost(encode) < link * _LINK_USED:
            self._votes += 1
            if self._votes >= self._patience:
                self._votes = 0
                self._at += 1
                self._climbed = True
        else:
            self._votes = 0

    def _next_cost(self, encode_s: float) -> float:
        """Seconds more than now that the next level would take."""
        now, after = COSTS.get(self.level, 1.0), COSTS[self._levels[self._at + 1]]
        return encode_s * (after / now - 1)
