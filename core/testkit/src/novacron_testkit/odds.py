"""When faults strike: for each kind chosen beforehand, by the seed alone.

Whether a fault strikes is not drawn each time it could. For each kind, how many times it does *not*
strike is drawn from a source of its own. So a kind's third fault comes at its same opportunity
whatever became of the other faults: forbid those that do not matter, and the rest stays. And what
does not happen, which is nearly always, costs next to nothing.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Mapping
from typing import Final

from novacron_testkit.experiment import Experiment

NEVER: Final = 1 << 62


class Odds:
    """One kind of fault: counts its opportunities.

    Args:
        seed: The run's.
        kind: The fault's name.
        probability: How likely it is at each opportunity.
        experiment: What may forbid it.

    Attributes:
        left: How many opportunities until it strikes, that one included.
    """

    __slots__ = ("_count", "_experiment", "_rng", "kind", "left", "probability")

    def __init__(
        self, seed: int, kind: str, probability: float, experiment: Experiment | None
    ) -> None:
        self.kind = kind
        self.probability = probability
        self._experiment = experiment
        self._count = 0
        self._rng = random.Random(seed << 32 | zlib.crc32(kind.encode()))
        self.left = self._gap()

    def strike(self) -> float | None:
        """It is its turn. Returns: how hard it strikes, as a share below 1 of the most that it may;
        None if it is forbidden."""
        number, self._count = self._count, self._count + 1
        share = self._rng.random()
        self.left = self._gap()
        allowed = self._experiment is None or self._experiment.allows(self.kind, number)
        return share if allowed else None

    def change(self, probability: float) -> None:
        """From now on it is so likely."""
        if probability != self.probability:
            self.probability = probability
            self.left = self._gap()

    def _gap(self) -> int:
        if self.probability <= 0:
            return NEVER
        if self.probability >= 1:
            return 1
        return 1 + int(math.log(1 - self._rng.random()) / math.log1p(-self.probability))


class Chances:
    """Several kinds that have the same opportunities.

    Attributes:
        calm: How many opportunities pass before one of them strikes.
    """

    __slots__ = ("_odds", "calm")

    def __init__(
        self, seed: int, kinds: Mapping[str, float], experiment: Experiment | None
    ) -> None:
        self._odds = [Odds(seed, kind, p, experiment) for kind, p in kinds.items() if p > 0]
        self.calm = 0
        self._look()

    def struck(self) -> dict[str, float]:
        """The opportunity after the calm ones: the kinds that strike, and how hard."""
        passed = self.calm + 1
        struck: dict[str, float] = {}
        for odds in self._odds:
            odds.left -= passed
            if odds.left == 0 and (share := odds.strike()) is not None:
                struck[odds.kind] = share
        self._look()
        return struck

    def _look(self) -> None:
        self.calm = min((odds.left for odds in self._odds), default=NEVER) - 1
