"""What the ways to the targets are forecast to carry: from settings, from estimates, and from what
the evacuation's own moves reach."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping

from attrs import define, field
from novacron import MoveEstimate

from novacron_placement_itp._model import Link
from novacron_placement_itp._settings import EvacuateSettings

# Of what is known when nothing else says how certain it is.
_SPREAD = 0.3
_WINDOW_S = 5.0
_WEIGHT = 0.4


@define
class _Way:
    rate: float
    low: float
    high: float
    measured: bool = False


@define(eq=False)
class Forecast:
    """Of each way, renewed as moves show what it carries.

    Attributes:
        share: The part that may be used.
        wire_part: Bytes on the wire per byte of memory, as measured so far.
    """

    settings: EvacuateSettings
    share: float = 1.0
    wire_part: float = field(init=False)
    _ways: dict[str, _Way] = field(factory=dict, init=False)
    _sent: dict[str, deque[tuple[float, int]]] = field(factory=dict, init=False)
    _raw: int = field(default=0, init=False)
    _wire: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.wire_part = self.settings.wire_part

    def know(self, target: str, rate: float | None, estimate: MoveEstimate | None = None) -> None:
        """What a probe or an estimate says of a way; what is measured here is worth more."""
        way = self._ways.get(target)
        if way is not None and way.measured:
            return
        told = _told(estimate)
        if target in self.settings.links:
            told = _spread(self.settings.links[target])
        elif told is None and rate is not None and math.isfinite(rate) and rate > 0:
            told = _spread(rate)
        if told is not None:
            self._ways[target] = told
        elif way is None:
            self._ways[target] = _spread(self.settings.rate_bytes_per_s)

    def saw(self, target: str, now_s: float, wire_bytes: int, copying: bool) -> None:
        """How much has gone that way by now; ``copying``: something wanted to go all the time."""
        line = self._sent.setdefault(target, deque())
        if not copying or (line and wire_bytes < line[-1][1]):
            line.clear()
        line.append((now_s, wire_bytes))
        began_s, before = line[0]
        if now_s - began_s < _WINDOW_S:
            return
        seen = (wire_bytes - before) / (now_s - began_s)
        line.clear()
        line.append((now_s, wire_bytes))
        if seen <= 0:
            return
        way = self._ways.get(target)
        if way is None or not way.measured:
            self._ways[target] = fresh = _spread(seen)
            fresh.measured = True
            return
        way.rate += _WEIGHT * (seen - way.rate)
        off = abs(seen - way.rate)
        way.low = way.rate - max(1.645 * off, 0.1 * way.rate)
        way.high = way.rate + max(1.645 * off, 0.1 * way.rate)
        way.low = max(way.low, 0.1 * way.rate)

    def moved(self, raw_bytes: int, wire_bytes: int) -> None:
        """A move has ended: so much state became so much on the wire."""
        self._raw += max(raw_bytes, 0)
        self._wire += max(wire_bytes, 0)
        if self._raw > 0:
            self.wire_part = min(max(self._wire / self._raw, 0.001), 2.0)

    def links(self, targets: Iterable[str]) -> list[Link]:
        """The ways to some targets, and the uplink that they share."""
        share, names = self.share, sorted(targets)
        links = []
        for target in names:
            way = self._ways.get(target) or _spread(self.settings.rate_bytes_per_s)
            link = Link(
                name=f"the way to {target}",
                targets=frozenset((target,)),
                rate=way.rate * share,
                low=way.low * share,
                high=way.high * share,
            )
            links.append(link)
        if names and self.settings.uplink_bytes_per_s:
            rate = self.settings.uplink_bytes_per_s * share
            links.append(Link(name="the uplink", targets=frozenset(names), rate=rate))
        return links


def _spread(rate: float) -> _Way:
    return _Way(rate, rate * (1 - _SPREAD), rate * (1 + _SPREAD))


def _told(estimate: MoveEstimate | None) -> _Way | None:
    """The rate that an estimate of bytes and seconds means, if somebody measured it."""
    if estimate is None or not estimate.confidence:
        return None
    if estimate.bytes is None or estimate.seconds is None:
        return None
    sent = estimate.bytes[1]
    low, middle, high = estimate.seconds
    if not (sent > 0 and 0 < low <= middle <= high < math.inf):
        return None
    return _Way(sent / middle, sent / high, sent / low)


def wire_bytes(used_bytes: int, estimate: MoveEstimate | None, part: float) -> float:
    """Expected of a machine."""
    if estimate is not None and estimate.confidence and estimate.bytes is not None:
        return max(estimate.bytes[1], 1.0)
    return max(used_bytes * part, 1.0)


Sent = Mapping[str, int]
