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

from attrs import define, field, frozen

from novacron_transport_amst._flow import Flow
from novacron_transport_amst._queue import Least, Queue

# The queue that is aimed at, as a delay: of a round trip, seconds; the longer one counts.
AIM: Final = (0.06, 0.008)
# What ends the search, and what is far too long while cruising.
FOUND: Final = (0.03, 0.006)
LONG: Final = (0.15, 0.025)
# A shorter queue than this is a burst of a stream, which sends several packets at once.
BURST_BYTES: Final = 20 * 1448
# A round trip, for what goes by round trips; on a short path there are not enough looks in one.
UNIT_S: Final = 0.15
# The search: the first rate in bytes per second, its growth per unit, and how far ahead of what the
# streams take it may be. Below the first rate their own doubling is all there is.
SEARCH_FROM: Final = 2e6
SEARCH_GROWTH: Final = 1.5
SEARCH_AHEAD: Final = 1.6
# A queue that shows for so many units ends the search, whatever arrives.
SHOWN_UNITS: Final = 3.0
# Bytes per second that any path is taken for. Slower, the link's chunks would come one by one, and
# nothing could be told from them; acknowledgements and signs of life need some, too.
LEAST: Final = 256e3
# Less than this part of what was offered arrives: the path is full.
FULL: Final = 0.93
# While a long queue neither grows nor shrinks, the estimate comes to what arrives in so many units.
STEADY_UNITS: Final = 4.0
# More than this part of what may be sent is sent: the rate is used.
USED: Final = 0.93
# A wrong queue is mended in so many round trips (and looks), within these bounds of the rate.
MEND: Final = 1.2
MEND_LOOKS_S: Final = 0.2
MEND_MOST: Final = (-0.8, 0.03)
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
# What arrives and is offered is compared over this long, or a round trip.
SPAN_S: Final = 0.3
# Rates of so many looks tell what might have been sent.
RATES: Final = 5
# More than this part of what was offered arrives: a queue drains.
DRAINS: Final = 1.03
# Less than this part of what arrived lately is sent: a queue of ours must drain.
LESS: Final = 0.9
# A long queue that does not drain within so many round trips and seconds is not ours.
OURS: Final = 2.5
OURS_S: Final = 0.4


@frozen
class _Look:
    """What is known at one look.

    Attributes:
        passed_s: Since the last one.
        unit_s: What goes by round trips takes so long.
        arrives: Bytes per second.
        full: Less arrives than was offered a round trip ago.
        drains: More arrives than was.
        used: What may be sent is sent.
    """

    now_s: float
    passed_s: float
    unit_s: float
    arrives: float
    full: bool
    drains: bool
    used: bool

    @property
    def units(self) -> float:
        return self.passed_s / self.unit_s


@define
class Cruise:
    """Finds what a path takes, and keeps it full with a short queue.

    Attributes:
        path: Bytes per second that it takes; None while that is searched for.
        rate: Bytes per second to send now; None before anything is known.
    """

    path: float | None = field(default=None, init=False)
    rate: float | None = field(default=None, init=False)
    queue: Queue = field(factory=Queue, init=False)
    _rates: deque[float] = field(factory=lambda: deque(maxlen=RATES), init=False)
    _peak: Least = field(factory=lambda: Least(LATELY_S), init=False)
    # While searching: since when a queue shows.
    _shown_s: float | None = field(default=None, init=False)
    # Since when there is a long queue, and what the path was taken for then.
    _long: tuple[float, float] | None = field(default=None, init=False)
    # Since when there is none, and since when the queue was not seen empty.
    _calm_s: float = field(default=0.0, init=False)
    _stood_s: float = field(default=0.0, init=False)
    _last_s: float | None = field(default=None, init=False)

    def decide(self, now_s: float, rtt_s: float, floor_s: float, flow: Flow, backlog: bool) -> None:
        """Adjust the rate.

        Args:
            rtt_s: The shortest round trip of the streams now.
            floor_s: The shortest that they know of.
            backlog: Whether there is more to send than the rate allows.
        """
        passed_s = 0.0 if self._last_s is None else min(now_s - self._last_s, UNIT_S)
        self._last_s = now_s
        self.queue.look(now_s, rtt_s, floor_s)
        if not flow.known():
            return
        base_s = self.queue.base_s
        span_s = max(SPAN_S, base_s)
        arrives = flow.arrives(span_s)
        offered = flow.offered(span_s, rtt_s)
        look = _Look(
            now_s=now_s,
            passed_s=passed_s,
            unit_s=max(base_s, UNIT_S),
            arrives=arrives,
            full=arrives < FULL * offered,
            drains=arrives > DRAINS * offered,
            used=backlog and flow.offered(span_s) > USED * min(self._rates, default=0.0),
        )
        if self.path is not None:
            self._cruise(look, flow)
        elif backlog:
            self._search(look, flow)
        else:
            # What the streams take is what there is: nothing is learnt from it. The side that only
            # acknowledges must never be held at the rate of that.
            self._shown_s = None
        if self.rate is not None:
            self._rates.append(self.rate)

    def _search(self, look: _Look, flow: Flow) -> None:
        queue, rate = self.queue, self.rate or SEARCH_FROM
        if queue.latest_s <= _longer(FOUND, queue.base_s, look.arrives):
            self._shown_s = None
            # A stream that repairs a loss takes less for a round trip: no reason to begin again.
            most = SEARCH_AHEAD * flow.offered(look.unit_s)
            self.rate = max(rate, min(rate * SEARCH_GROWTH**look.units, most))
            return
        self._shown_s = look.now_s if self._shown_s is None else self._shown_s
        shown_s = look.now_s - self._shown_s
        sure = shown_s > 0 or queue.latest_s > _longer(LONG, queue.base_s, look.arrives)
        if (sure and look.full) or shown_s > SHOWN_UNITS * look.unit_s:
            self._found(look, flow)

    def _found(self, look: _Look, flow: Flow) -> None:
        self.path = flow.arrives(max(self.queue.base_s / 2, UNIT_S))
        self._calm_s = self._stood_s = look.now_s
        self._mend(look, flow, dips=False)

    def _cruise(self, look: _Look, flow: Flow) -> None:
        assert self.path is not None
        base_s = self.queue.base_s
        long = self.queue.delay_s > _longer(LONG, base_s, self.path)
        if long and self._is_not_ours(look):
            long = False
        elif not long:
            self._long = None
        aim_s = _longer(AIM, base_s, self.path)
        shows = self.queue.delay_s > aim_s / 2
        if self.queue.delay_s < aim_s / 4:
            self._stood_s = look.now_s
        dips = look.now_s - self._stood_s > DIP_EVERY_S
        if look.now_s - self._stood_s > DIP_EVERY_S + 2 * base_s + MEND_LOOKS_S:
            self._stood_s = look.now_s
        if shows:
            # So short a one may be the noise of a busy host.
            back_s = look.now_s - self._calm_s if self.queue.delay_s > aim_s else 2 * look.passed_s
            self._calm_s = min(self._calm_s + back_s, look.now_s)
            self._learn(look, long=long)
        elif dips or not look.used:
            self._calm_s += look.passed_s
        elif not look.full:
            self._grow(look)
        self._peak.add(look.now_s, -look.arrives)
        gain = self._mend(look, flow, dips=dips)
        if not dips and not long and (gain < 0 or look.used):
            self.path *= 1 + gain * look.passed_s / (LEARN * _mended_in(base_s))

    def _is_not_ours(self, look: _Look) -> bool:
        """Whether a long queue stays although less is sent, and no more arrives than that."""
        assert self.path is not None
        if self._long is None:
            self._long = (look.now_s, self.path)
        since_s, before = self._long
        waited = look.now_s - since_s > OURS * (self.queue.base_s + self.queue.delay_s) + OURS_S
        least = LESS * min(self.path, -self._peak.add(look.now_s, -look.arrives))
        if not waited or look.drains or look.full or look.arrives > least:
            return False
        self.queue.is_not_ours(look.now_s)
        self.path, self._long = max(self.path, before), None
        return True

    def _learn(self, look: _Look, *, long: bool) -> None:
        """A queue shows: what arrives may be what the path takes."""
        assert self.path is not None
        if long and look.arrives < self.path:
            part = 1.0 if look.full else min(look.units / STEADY_UNITS, 1.0)
            self.path += (look.arrives - self.path) * part
        elif look.arrives > self.path:
            most = self.path * (1 + STEP_BACK) ** look.units
            self.path = look.arrives if long else min(look.arrives, most)

    def _grow(self, look: _Look) -> None:
        """No queue shows although all is sent that may be."""
        assert self.path is not None
        calm_units = (look.now_s - self._calm_s) / look.unit_s - CALM_UNITS
        if calm_units <= 0:
            return
        step = min(STEP * STEP_GROWTH**calm_units, STEP_MOST)
        if self.path < FULL * -self._peak.add(look.now_s, -look.arrives):
            step = max(step, STEP_BACK)
        self.path *= (1 + step) ** look.units

    def _mend(self, look: _Look, flow: Flow, *, dips: bool) -> float:
        """Set the rate such that the queue becomes what is aimed at; by how much it differs.

        What is on its way already decides how long the queue will be in a round trip.
        """
        assert self.path is not None
        base_s = self.queue.base_s
        self.path = max(self.path, LEAST)
        ahead_s = (flow.offered(base_s) / self.path - 1) * base_s
        wrong_s = _longer(AIM, base_s, self.path) - max(self.queue.newer_s + ahead_s, 0.0)
        gain = min(max(wrong_s / _mended_in(base_s), MEND_MOST[0]), MEND_MOST[1])
        if dips:
            gain = min(gain, -DIP)
        self.rate = self.path * (1 + gain)
        return gain


def _longer(limits: tuple[float, float], base_s: float, rate: float) -> float:
    return max(limits[0] * base_s, limits[1], BURST_BYTES / max(rate, LEAST))


def _mended_in(base_s: float) -> float:
    return MEND * (base_s + MEND_LOOKS_S)
