"""The levels to choose from, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from novacron import Effort

# Below every level of zstd: the batch as it is.
STORED: Final = -(1 << 18)

# Processor time per byte, relative to level 1, over 256 MiB of programs and libraries (see the
# README). Only the steps that gain something for what they cost.
COSTS: Final[Mapping[int, float]] = MappingProxyType(
    {
        STORED: 0.05,
        -50: 0.37,
        -30: 0.46,
        -20: 0.55,
        -10: 0.65,
        -5: 0.75,
        -1: 0.88,
        1: 1,
        2: 1.2,
        3: 1.5,
        5: 3,
        7: 4.8,
        9: 6.4,
        12: 10,
    }
)
LEVELS: Final = tuple(level for level in COSTS if level != STORED)


def effort(lowest: int, highest: int, start: int, *, store: bool = False) -> Effort:
    """Chooses among the levels between two, and `STORED` if ``store`` allows."""
    levels = [level for level in LEVELS if lowest <= level <= highest] or [lowest]
    steps = [STORED, *levels] if store else levels
    costs = {step: COSTS.get(step, 1.0) for step in steps}
    return Effort(costs, max(start, levels[0]), still={STORED})
