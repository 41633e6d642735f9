"""How fast a link sends over streams that do not decide it themselves. Without I/O.

The law, which is close to Copa's (Arun and Balakrishnan, NSDI 2018): keep a queue of a few
hundredths of a round trip, long enough that the path is never idle and too short for others to
mind. What the path takes is learnt from three things only, and never from a rate that was merely
what we sent:

- A queue shows and less arrives than was offered a round trip ago: what arrives is the path's rate.
- A queue shows and more arrives than the path was thought to take: it takes more.
- No queue shows although all that may be sent is sent: it takes more, and the longer that lasts the
  faster the rate grows (as the probing of BBR's later versions does).

In between, a queue that is longer or shorter than aimed at is mended in proportion, and what stays
wrong is slowly taken into the estimate. A host that is busy acknowledges late, which looks like a
queue. By the first rule that does not lower the estimate, since as much arrives as is offered.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define, field

from novacron_transport_amst._flow import Flow

# The queue that is aimed at, as a delay: of a round trip, seconds; the longer one counts.
AIM: Final = (0.06, 0.008)
# What ends the search, and what is far too long while cruising.
FOUND: Final = (0.03, 0.005)
LONG: Final = (0.15, 0.025)
# Looks of which the shortest queue counts.
LOOKS: Final = 3
# A round trip, for what goes by round trips; on a short path there are not enough looks in one.
UNIT_S: Final = 0.15
# The search: the first rate in bytes per second, its growth per unit, and how far ahead of what the
# streams take it may be. Below the first rate their own doubling is all there is.
SEARCH_FROM: Final = 2e6
SEARCH_GROWTH: Final = 1.5
SEARCH_AHEAD: Final = 1.4
# A queue that shows for so many units ends the search, whatever arrives.
SHOWN_UNITS: Final = 3.0
# Bytes per second that any path takes; acknowledgements and signs of life need some, too.
LEAST: Final = 32e3
# Less than this part of what was offered arrives: the path is full.
FULL: Final = 0.93
# While a long queue neither grows nor shrinks, the estimate comes to what arrives in so many units.
STEADY_UNITS: Final = 4.0
# More than this part of what may be sent is sent: the rate is used.
USED: Final = 0.93
# More than this is sent again beyond what always is: a full queue too short to be seen.
OVERRUN: Final = 0.05
# A wrong queue is mended in so many round trips (and looks), within these bounds of the rate.
MEND: Final = 1.2
MEND_LOOKS_S: Final = 0.2
MEND_MOST: Final = (-0.5, 0.03)
# What stays wrong is taken into the estimate this much more slowly.
LEARN: Final = 4.0
# Growth per unit once no queue has shown for so many: at first, how it grows itself, and at most;
# and up to what arrived lately. Before that, mending alone makes the queue longer.
CALM_UNITS: Final = 4.0
STEP: Final = 0.01
STEP_GROWTH: Final = 1.5
STEP_MOST: Final = 0.25
STEP_BACK: Final = 0.1
LATELY_S: Final = 10.0
# Once in so long the queue is let run empty, to see the round trip without it.
DIP_EVERY_S: Final = 6.0
DIP: Final = 0.05
BASE_S: Final = 13.0
# What arrives and is offered is compared over this long, or a round trip.
SPAN_S: Final = 0.3


@define
class Cruise:
    """Finds what a path takes, and keeps it full with a short queue.

    Attributes:
        path: Bytes per second that it takes; None while that is searched for.
        rate: Bytes per second to send now; None before anything is known.
    """

    path: float | None = field(default=None, init=False)
    rate: float | None = field(default=None, init=False)
    _queues: deque[float] = field(factory=lambda: deque(maxlen=LOOKS), init=False)
    _rates: deque[float] = field(factory=lambda: deque(maxlen=LOOKS + 2), init=False)
    _base: deque[tuple[float, float]] = field(factory=deque, init=False)
    _peaks: deque[tuple[float, float]] = field(factory=deque, init=False)
    _resent: deque[tuple[float, float]] = field(factory=deque, init=False)
    _shown_s: float | None = field(default=None, init=False)
    _calm_s: float = field(default=0.0, init=False)
    _dip_s: float = field(default=0.0, init=False)
    _last_s: float | None = field(default=None, init=False)

    def decide(self, now_s: float, rtt_s: float, floor_s: float, flow: Flow, backlog: bool) -> None:
        """Adjust the rate.

        Args:
            rtt_s: The shortest round trip of the streams now.
            floor_s: The shortest that they know of.
            backlog: Whether there is more to send than the rate allows.
        """
        passed_s = 0.0 if self._last_s is None else min(now_s - self._last_s, UNIT_S)
        if self._last_s is None:
            _keep_least(self._base, now_s, floor_s, BASE_S)
        self._last_s = now_s
        _keep_least(self._base, now_s, rtt_s, BASE_S)
        base_s = self._base[0][1]
        self._queues.append(rtt_s - base_s)
        span_s = max(SPAN_S, base_s)
        arrives = flow.arrives(span_s)
        _keep_least(self._peaks, now_s, -arrives, LATELY_S)
        if not flow.known():
            return
        full = arrives < FULL * flow.offered(span_s, base_s)
        if self.path is None:
            self._search(now_s, passed_s, base_s, flow, full, backlog)
        else:
            self._cruise(now_s, passed_s, base_s, flow, full, backlog)
        if self.rate is not None:
            self._rates.append(self.rate)

    def _search(
        self, now_s: float, passed_s: float, base_s: float, flow: Flow, full: bool, backlog: bool
    ) -> None:
        units = passed_s / max(base_s, UNIT_S)
        arrives = flow.arrives(max(base_s / 2, UNIT_S))
        if not backlog:
            # What the streams take is what there is: nothing is learnt from it. The side that only
            # acknowledges must never be held at the rate of that.
            self._shown_s = None
            return
        if self._queues[-1] <= _longer(FOUND, base_s):
            self._shown_s = None
            # A stream that repairs a loss takes less for a round trip: no reason to begin again.
            taken = flow.offered(max(base_s, UNIT_S))
            rate = self.rate or SEARCH_FROM
            grown = rate * SEARCH_GROWTH**units
            self.rate = max(rate, min(grown, SEARCH_AHEAD * taken))
            return
        if self._shown_s is None:
            self._shown_s = now_s
            return
        shown_units = (now_s - self._shown_s) / max(base_s, UNIT_S)
        if full or shown_units > SHOWN_UNITS:
            self.path = max(arrives, LEAST)
            self._calm_s = self._dip_s = now_s
            self._mend(now_s, base_s, flow)

    def _cruise(
        self, now_s: float, passed_s: float, base_s: float, flow: Flow, full: bool, backlog: bool
    ) -> None:
        assert self.path is not None
        span_s = max(SPAN_S, base_s)
        arrives = flow.arrives(span_s)
        unit_s = max(base_s, UNIT_S)
        units = passed_s / unit_s
        queue_s, aim_s = min(self._queues), _longer(AIM, base_s)
        dips = self._dips(now_s, base_s)
        used = flow.offered(span_s) > USED * min(self._rates, default=0.0)
        long = queue_s > _longer(LONG, base_s)
        if full and (long or self._overruns(now_s, span_s, flow)):
            self.path = min(self.path, arrives)
            self._calm_s = now_s
        elif long and arrives < self.path:
            self.path += (arrives - self.path) * min(units / STEADY_UNITS, 1.0)
            self._calm_s = now_s
        elif queue_s > aim_s / 2:
            self._calm_s = now_s
            if arrives > self.path:
                most = self.path * (1 + STEP_BACK) ** units
                self.path = arrives if long else min(arrives, most)
        elif not backlog or not used or full or dips:
            self._calm_s = now_s
        elif (calm_units := (now_s - self._calm_s) / unit_s) > CALM_UNITS:
            step = min(STEP * STEP_GROWTH ** (calm_units - CALM_UNITS), STEP_MOST)
            if self.path < FULL * -self._peaks[0][1]:
                step = max(step, STEP_BACK)
            self.path *= (1 + step) ** units
        gain = self._mend(now_s, base_s, flow)
        if not dips and (gain < 0 or (backlog and used)):
            self.path *= 1 + gain * passed_s / (LEARN * _mended_in(base_s))

    def _mend(self, now_s: float, base_s: float, flow: Flow) -> float:
        """Set the rate such that the queue becomes what is aimed at; by how much it differs.

        What is on its way already decides how long the queue will be in a round trip.
        """
        assert self.path is not None
        ahead_s = (flow.offered(base_s) / self.path - 1) * base_s if self.path else 0.0
        queue_s = max(min(list(self._queues)[-2:]) + ahead_s, 0.0)
        wrong_s = _longer(AIM, base_s) - queue_s
        gain = min(max(wrong_s / _mended_in(base_s), MEND_MOST[0]), MEND_MOST[1])
        if self._dips(now_s, base_s):
            gain = min(gain, -DIP)
        self.path = max(self.path, LEAST)
        self.rate = self.path * (1 + gain)
        return gain

    def _dips(self, now_s: float, base_s: float) -> bool:
        if now_s - self._dip_s > DIP_EVERY_S + 2 * base_s + MEND_LOOKS_S:
            self._dip_s = now_s
        return now_s - self._dip_s > DIP_EVERY_S

    def _overruns(self, now_s: float, span_s: float, flow: Flow) -> bool:
        resent = flow.resent(span_s)
        _keep_least(self._resent, now_s, resent, LATELY_S)
        return resent > self._resent[0][1] + OVERRUN


def _longer(limits: tuple[float, float], base_s: float) -> float:
    return max(limits[0] * base_s, limits[1])


def _mended_in(base_s: float) -> float:
    return MEND * (base_s + MEND_LOOKS_S)


def _keep_least(
    kept: deque[tuple[float, float]], now_s: float, value: float, span_s: float
) -> None:
    """Keep what may still become the least of the last ``span_s``; the first is it now."""
    while kept and kept[-1][1] >= value:
        kept.pop()
    kept.append((now_s, value))
    while now_s - kept[0][0] > span_s:
        kept.popleft()
