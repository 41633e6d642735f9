"""What moves take before and after their bytes flow, as they have shown."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

from attrs import define, evolve, field

from novacron_placement_itp._evacuation import Rules
from novacron_placement_itp._fluid import Stage

_KEPT: Final = 8
_ENOUGH: Final = 2


@define(eq=False)
class Paces:
    """The last few moves' seconds in each stage that sends nothing."""

    _prepared: deque[float] = field(factory=lambda: deque(maxlen=_KEPT), init=False)
    _finished: deque[float] = field(factory=lambda: deque(maxlen=_KEPT), init=False)
    _copies: set[str] = field(factory=set, init=False)
    _finishes: dict[str, float] = field(factory=dict, init=False)

    def see(self, machine: str, stage: Stage, since_s: float) -> None:
        """A move is in a stage, so long after it was begun."""
        if stage is Stage.PREPARE:
            self._copies.discard(machine)
            self._finishes.pop(machine, None)
        elif machine not in self._copies:
            self._copies.add(machine)
            self._prepared.append(since_s)
        if stage is Stage.FINISH:
            self._finishes.setdefault(machine, since_s)

    def ended(self, machine: str, since_s: float) -> None:
        began_s = self._finishes.pop(machine, None)
        if began_s is not None:
            self._finished.append(since_s - began_s)

    def applied(self, rules: Rules) -> Rules:
        """The rules with what is known by now."""
        if len(self._prepared) >= _ENOUGH:
            rules = evolve(rules, prepare_s=median(self._prepared))
        if len(self._finished) >= _ENOUGH:
            rules = evolve(rules, finish_s=median(self._finished))
        return rules
