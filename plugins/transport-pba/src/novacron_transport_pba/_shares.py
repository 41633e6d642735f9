"""How moves share a link: deadlines first, by what they need, then fair shares by priority.

Without I/O and without a clock: needs and a capacity go in, rates come out. What comes out is never
above the capacity nor above any move's own limit; all of the capacity is given out while anyone may
take it; and deadlines that can be met together at this capacity are met if it is asked again and
again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from attrs import field, frozen, validators

_PRIORITY_MOST: Final = 16


@frozen(kw_only=True)
class Need:
    """What one move needs. All sizes and rates are on the wire, in bytes.

    Attributes:
        name: Of the move, unique.
        priority: A move gets twice the share of one whose priority is lower by one.
        remaining: What it still has to send.
        deadline_s: Left for that; None for no deadline.
        limit: The most that it may send per second.
    """

    name: str
    priority: int = 0
    remaining: float = field(default=0.0, validator=validators.ge(0))
    deadline_s: float | None = None
    limit: float = field(default=math.inf, validator=validators.ge(0))

    @property
    def weight(self) -> float:
        return 2.0 ** max(-_PRIORITY_MOST, min(self.priority, _PRIORITY_MOST))


def allocate(needs: Sequence[Need], capacity: float) -> dict[str, float]:
    """Bytes per second for each move. Raises: ValueError for a capacity that is none."""
    if not (capacity >= 0 and math.isfinite(capacity)):
        raise ValueError(f"{capacity!r} is no capacity")
    rates = {need.name: 0.0 for need in needs}
    if len(rates) != len(needs):
        raise ValueError("two of the moves have the same name")
    left = capacity
    for need, rate in _for_deadlines(needs, capacity):
        rates[need.name] = min(rate, left)
        left -= rates[need.name]
    for need, rate in zip(needs, _fair(needs, rates, max(left, 0.0)), strict=True):
        rates[need.name] += rate
    return rates


def _for_deadlines(needs: Sequence[Need], capacity: float) -> list[tuple[Need, float]]:
    """What those with deadlines get before all others."""
    kept = [
        need for need in needs if need.deadline_s is not None and need.deadline_s > 0
        and need.remaining <= need.limit * need.deadline_s
    ]  # fmt: skip
    while kept:
        steady = [(need, need.remaining / (need.deadline_s or 1.0)) for need in kept]
        if sum(rate for _, rate in steady) <= capacity:
            return steady
        # Steady rates ask too much; one after the other, the nearest deadline first, may still do.
        kept.sort(key=lambda need: need.deadline_s or 0.0)
        sent = total = 0.0
        for need in kept:
            sent += need.remaining
            total = max(total, sent / (need.deadline_s or 1.0))
        if total <= capacity:
            found = []
            for need in kept:
                rate = min(total, need.limit)
                found.append((need, rate))
                total -= rate
            return found
        # Not all can be met: the least important gives way, of those the one that asks most.
        kept.remove(
            min(kept, key=lambda need: (need.priority, -need.remaining / (need.deadline_s or 1.0)))
        )
    return []


def _fair(needs: Sequence[Need], granted: dict[str, float], left: float) -> list[float]:
    """Weighted water-filling: whoever is at its limit leaves what it cannot take to the others."""
    room = [max(0.0, need.limit - granted[need.name]) for need in needs]
    shares = [0.0] * len(needs)
    order = sorted(range(len(needs)), key=lambda place: room[place] / needs[place].weight)
    weight = sum(need.weight for need in needs)
    for place in order:
        own = needs[place].weight
        shares[place] = min(room[place], left * min(1.0, own / weight) if weight > 0 else left)
        left = max(0.0, left - shares[place])
        weight -= own
    return shares
