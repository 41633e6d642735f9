"""How hard to try: steps below the levels of zstd, one that looks for pages but compresses nothing,
and one that does not even look."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from novacron import Effort

# Below every level of zstd: pages are looked for, and what is not found goes as it is ...
UNPACKED: Final = -(1 << 17)
# ... and batches as they are.
UNTOUCHED: Final = -(1 << 18)

# Processor time per byte, relative to zstd's level 1: what `measure_ladder.py` prints, over what
# the provider ``zstd`` measured for the levels.
COSTS: Final[Mapping[int, float]] = MappingProxyType(
    {
        UNTOUCHED: 0.05,
        UNPACKED: 0.3,
        -50: 0.6,
        -30: 0.7,
        -20: 0.8,
        -10: 0.9,
        -5: 1.0,
        -1: 1.1,
        1: 1.25,
        2: 1.45,
        3: 1.75,
        5: 3.2,
        7: 5,
        9: 6.6,
        12: 10,
    }
)
LEVELS: Final = tuple(step for step in COSTS if step > UNPACKED)


def effort(lowest: int, highest: int, start: int, *, store: bool = False) -> Effort:
    """Chooses among the levels between two, and `UNTOUCHED` and `UNPACKED` if ``store`` allows."""
    levels = [level for level in LEVELS if lowest <= level <= highest] or [lowest]
    steps = [UNTOUCHED, UNPACKED, *levels] if store else levels
    costs = {step: COSTS.get(step, 1.0) for step in steps}
    return Effort(costs, max(start, levels[0]), still={UNTOUCHED})
