"""Decides how many streams a link uses, and how fast they send together. Without I/O.

Three things are decided from what is measured:

- **How many streams.** Where the path is what limits, more streams change nothing. Where each
  stream is limited by itself (CUBIC on a lossy path, or a BBR that ended its search too early),
  they add up: the number is doubled as long as that helps.
- **How fast**, if BBR is there. Left alone it fills the queue of the path up to a whole round trip
  and overruns it. So the link as a whole is held at the rate at which that queue just begins to
  show: `Cruise`. The streams then have less to send than they could, so that one steps in while
  another measures its round trip (BBR stops sending for that twice in a while), and BBR, which does
  not lower its estimate of a stream that has little to send, stays ready.
- **How much of what the node may send** a link gets: `Shares`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from attrs import define, field, frozen
from novacron import PathReading, Steer

# A path this short has no loss that more streams would help against, and no queue worth sparing.
NEAR_S: Final = 0.003
# The queue, as a delay: the one that is aimed at, and the one that is drained at once.
QUEUE_AIM: Final = (0.06, 0.01)  # of a round trip, seconds; the longer one counts
QUEUE_FOUND: Final = (0.1, 0.01)
DRAIN: Final = 0.92
DRAIN_TRIES: Final = 3
# A path has become slower if less than this part of what is sent arrives.
SLOWER: Final = 0.9
KEEP: Final = 0.98
# Growth per round trip, or per so many seconds if that is longer, while no queue shows: near the
# rate at which there was one lately, below that, and what it rises to beyond.
STEP_S: Final = 0.15
STEP: Final = 0.01
STEP_BACK: Final = 0.1
STEP_MAX: Final = 0.25
NEAR_CEILING: Final = (0.95, 1.1)
# About what lies between two decisions.
LOOK_EVERY_S: Final = 0.1
# A look at whether more streams have helped, after so many round trips and seconds.
LOOK_ROUND_TRIPS: Final = 8
LOOK_S: Final = 1.0
HELPED: Final = 1.15
# A link that uses this part of the rate it is held at needs no more streams.
HELD: Final = 0.6
# After streams did not help, and after a queue turned out not to be ours, that is believed so long.
REST_S: Final = 10.0
# With BBR a link has this many streams, if it may: four cost a fifth more processor time. Each may
# send so much that the others make good for one that pauses, and this much more.
STREAMS_BBR: Final = 2
STREAM_HEADROOM: Final = 1.05
# What may wait in the link, as time at its rate.
UNSENT_S: Final = 0.02
UNSENT_BYTES: Final = (128 << 10, 8 << 20)
UNSENT_UNKNOWN: Final = 1 << 20
WINDOW_S: Final = 0.8
STREAMS_KNOWN: Final = 256
WINDOW_ROUND_TRIPS: Final = 4
# What arrived at best is believed so long: a host that stood still for a moment is no slow path.
BEST_S: Final = 3.0


@frozen(kw_only=True)
class Limits:
    """What the operator allows. See the provider's settings."""

    streams_min: int = 1
    streams_max: int = 16
    share_max: float = 1.0


class Shares:
    """Splits what this node may send among the links that have something to send.

    A link that wants less than its part leaves the rest to the others (max-min fairness).
    """

    def __init__(self, total: float | None) -> None:
        self._total = total
        self._wants: dict[int, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def of(self, key: int, want: float, now_s: float) -> float | None:
        """What a link may send; None if there is no limit.

        Args:
            key: Of the link.
            want: Bytes per second that it could use; 0 if it has nothing to send.
        """
        if self._total is None:
            return None
        with self._lock:
            self._wants[key] = (want, now_s)
            # A link that has not asked for long is no more.
            self._wants = {k: v for k, v in self._wants.items() if now_s - v[1] < 2.0}
            left, count = self._total, len(self._wants)
            for wanted, other in sorted((w, k) for k, (w, _) in self._wants.items()):
                part = min(wanted, left / count) if count > 1 else left
                if other == key:
                    return max(part, left / count)
                left, count = left - part, count - 1
        return self._total


@define
class Flow:
    """Sums over a link's streams, and their rates over the last moments."""

    window_s: float = WINDOW_S
    _peaks: deque[tuple[float, float]] = field(factory=deque, init=False)
    _losses: deque[tuple[float, float]] = field(factory=deque, init=False)
    _best: deque[tuple[float, float]] = field(factory=deque, init=False)
    _totals: deque[tuple[float, int, int, int]] = field(factory=deque, init=False)
    _last: dict[int, tuple[int, int, int]] = field(factory=dict, init=False)
    _sum: tuple[int, int, int] = field(default=(0, 0, 0), init=False)
    sent: float = field(default=0.0, init=False)
    delivered: float = field(default=0.0, init=False)
    loss: float = field(default=0.0, init=False)

    def look(self, now_s: float, readings: Sequence[PathReading], rtt_s: float) -> None:
        """Take in new readings; what a stream did before it was first looked at does not count."""
        sums = list(self._sum)
        for reading in readings:
            now = (reading.sent_bytes, reading.delivered_bytes, reading.resent_bytes)
            before = self._last.pop(reading.stream, now)
            for index in range(3):
                sums[index] += now[index] - before[index]
            self._last[reading.stream] = now
        while len(self._last) > STREAMS_KNOWN:
            del self._last[next(iter(self._last))]
        self._sum = (sums[0], sums[1], sums[2])
        self._totals.append((now_s, *self._sum))
        span_s = max(self.window_s, WINDOW_ROUND_TRIPS * rtt_s)
        while len(self._totals) > 2 and now_s - self._totals[1][0] >= span_s:
            self._totals.popleft()
        then_s, sent, delivered, resent = self._totals[0]
        if now_s > then_s:
            self.sent = (self._sum[0] - sent) / (now_s - then_s)
            self.delivered = (self._sum[1] - delivered) / (now_s - then_s)
            if self._sum[0] > sent:
                self._note_loss(now_s, min((self._sum[2] - resent) / (self._sum[0] - sent), 0.5))
        _keep_most(self._best, now_s, self.arrives, BEST_S)
        _keep_most(self._peaks, now_s, self.arrives, REST_S)

    def _note_loss(self, now_s: float, loss: float) -> None:
        """What is lost by an overrun queue is not the path's own loss: the least lately counts."""
        while self._losses and self._losses[-1][1] >= loss:
            self._losses.pop()
        self._losses.append((now_s, loss))
        while now_s - self._losses[0][0] > REST_S:
            self._losses.popleft()
        self.loss = self._losses[0][1]

    def quick(self, span_s: float) -> float:
        """What arrives as in `arrives`, over the last moment."""
        now_s, _, delivered, _ = self._totals[-1]
        then_s, before = now_s, delivered
        for at_s, _, then, _ in reversed(self._totals):
            then_s, before = at_s, then
            if now_s - at_s >= span_s:
                break
        return (delivered - before) / (now_s - then_s) / (1 - self.loss) if now_s > then_s else 0.0

    @property
    def arrives(self) -> float:
        """What had to be sent for what was delivered, in bytes per second."""
        return self.delivered / (1 - self.loss)

    @property
    def best(self) -> float:
        """The most of that lately."""
        return self._best[0][1]

    @property
    def peak(self) -> float:
        """The most of that for a longer while."""
        return self._peaks[0][1]

    def known(self) -> bool:
        return len(self._totals) > 2 and self._totals[-1][0] - self._totals[0][0] >= self.window_s


def _keep_most(kept: deque[tuple[float, float]], now_s: float, value: float, span_s: float) -> None:
    """Keep what may still become the most of the last ``span_s``; the first is it now."""
    while kept and kept[-1][1] <= value:
        kept.pop()
    kept.append((now_s, value))
    while now_s - kept[0][0] > span_s:
        kept.popleft()


@define
class _Drain:
    """Sending less than what arrives, until the queue is gone.

    Attributes:
        before: The rate when it began.
        queue_s: The queue at the last look; ``look_at_s``: when to look again.
        tries: How often the rate was lowered.
    """

    before: float
    queue_s: float
    look_at_s: float
    tries: int = 1


@define
class Cruise:
    """Finds the rate at which the path's queue just begins to show, and keeps to it.

    Attributes:
        rate: Bytes per second, what is sent again included; None while it is searched for.
    """

    rate: float | None = field(default=None, init=False)
    _step: float = field(default=STEP, init=False)
    # The rate at which a queue showed last; 0 if that may have been a mistake.
    _ceiling: float = field(default=0.0, init=False)
    _recent: deque[float] = field(factory=lambda: deque(maxlen=5), init=False)
    _base: deque[tuple[float, float]] = field(factory=deque, init=False)
    _drain: _Drain | None = field(default=None, init=False)
    # What looks like a queue and is not ours, and until when that is believed.
    _noise: tuple[float, float] = field(default=(0.0, 0.0), init=False)
    _shown_s: float | None = field(default=None, init=False)
    _last_s: float = field(default=0.0, init=False)

    def decide(self, now_s: float, rtt_s: float, floor_s: float, flow: Flow, backlog: bool) -> None:
        """Adjust the rate.

        Args:
            rtt_s: The shortest round trip of the streams now.
            floor_s: The shortest that the streams know of.
        """
        passed_s = min(now_s - self._last_s, STEP_S) if self._last_s else 0.0
        self._last_s = now_s
        base_s = self._base_of(now_s, rtt_s, floor_s)
        self._recent.append(rtt_s - base_s)
        noise_s = self._noise[0] if now_s < self._noise[1] else 0.0
        aim_s = max(QUEUE_AIM[0] * base_s, QUEUE_AIM[1]) + noise_s
        if not flow.known():
            return
        if self.rate is None:
            self._search(now_s, base_s, flow)
        elif self._drain is not None:
            self._go_on_draining(now_s, base_s, aim_s, flow)
        elif len(self._recent) == self._recent.maxlen and min(self._recent) > aim_s:
            self._drain = _Drain(self.rate, min(self._recent), _look_at(now_s, base_s))
            # What is the most lately, since a host that stood still is no slow path.
            self._lower(min(flow.best, self.rate))
        elif backlog and self._recent[-1] <= aim_s and self._is_used(flow):
            units = passed_s / max(base_s, STEP_S)
            self.rate *= 1 + self._growth(units, flow) * units

    def _search(self, now_s: float, base_s: float, flow: Flow) -> None:
        """The streams grow by themselves until a queue has shown for a round trip: then what
        arrives is what the path takes."""
        if self._recent[-1] <= max(QUEUE_FOUND[0] * base_s, QUEUE_FOUND[1]):
            self._shown_s = None
            return
        self._shown_s = self._shown_s or now_s
        span_s = max(base_s, 2 * LOOK_EVERY_S)
        if now_s - self._shown_s >= span_s:
            found = flow.quick(span_s)
            self._drain = _Drain(found, self._recent[-1], _look_at(now_s, base_s))
            self._lower(found)
            self._ceiling = 0.0  # a host that was busy looks the same

    def _lower(self, arrives: float) -> None:
        self._ceiling = arrives
        self._step = STEP
        self.rate = DRAIN * arrives

    def _go_on_draining(self, now_s: float, base_s: float, aim_s: float, flow: Flow) -> None:
        assert self._drain is not None
        assert self.rate is not None
        drain, queue_s = self._drain, min(list(self._recent)[-2:])
        if queue_s <= aim_s:
            self.rate *= KEEP / DRAIN
            self._drain = None
        elif now_s < drain.look_at_s:
            return
        elif queue_s < 0.9 * drain.queue_s:
            drain.queue_s, drain.look_at_s = queue_s, _look_at(now_s, base_s)
        elif drain.tries < DRAIN_TRIES or flow.arrives < SLOWER * self.rate:
            # Less was sent, and it did not help: the path is slower than was thought.
            drain.tries += 1
            drain.queue_s, drain.look_at_s = queue_s, _look_at(now_s, base_s)
            self._lower(min(flow.arrives, self.rate))
        else:
            # It is jitter, a longer route, a busy host, or others who fill the queue.
            self._noise = (queue_s, now_s + REST_S)
            self.rate, self._drain = drain.before, None
            self._ceiling = drain.before
        if self._drain is None:
            self._recent.clear()

    def _is_used(self, flow: Flow) -> bool:
        """Whether what arrives is what may be sent; when growing fast it is some steps behind."""
        assert self.rate is not None
        return flow.arrives > (0.95 - 1.8 * self._step) * self.rate

    def _growth(self, units: float, flow: Flow) -> float:
        """By how much to grow per unit of time."""
        assert self.rate is not None
        if self.rate < max(NEAR_CEILING[0] * self._ceiling, DRAIN * flow.peak):
            return STEP_BACK
        if self.rate < NEAR_CEILING[1] * self._ceiling:
            self._step = STEP
        else:
            self._step = min(self._step * (1 + 0.6 * units), STEP_MAX)
        return self._step

    def _base_of(self, now_s: float, rtt_s: float, floor_s: float) -> float:
        """The round trip without a queue of ours: the least one lately, so that jitter is not taken
        for a queue; but not much more than what the streams found when they paused to look."""
        while self._base and self._base[-1][1] >= rtt_s:
            self._base.pop()
        self._base.append((now_s, rtt_s))
        while now_s - self._base[0][0] > REST_S:
            self._base.popleft()
        return min(self._base[0][1], floor_s + max(0.1 * floor_s, 0.01))


def _look_at(now_s: float, base_s: float) -> float:
    """When a change of the rate shows."""
    return now_s + 2 * base_s + 3 * LOOK_EVERY_S


@define
class Count:
    """How many streams: doubled while that helps, and taken back when it did not.

    Attributes:
        streams: Now.
    """

    limits: Limits
    streams: int = field(init=False)
    _before: int = field(default=0, init=False)
    _rate_before: float = field(default=0.0, init=False)
    _look_at_s: float = field(default=0.0, init=False)
    _last: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self.streams = self.limits.streams_min

    def decide(self, now_s: float, rtt_s: float, delivered: float, *, wanting: bool) -> None:
        """Adjust the number.

        Args:
            wanting: Whether there is more to send than the streams take, and no queue.
        """
        wait_s = max(LOOK_S, LOOK_ROUND_TRIPS * rtt_s)
        if not self._look_at_s:
            self._look_at_s = now_s + wait_s
        if now_s < self._look_at_s:
            return
        self._look_at_s = now_s + wait_s
        rises, self._last = delivered > HELPED * self._last, delivered
        if self._before:
            if delivered < HELPED * self._rate_before:
                self.streams, self._before = self._before, 0
                self._look_at_s = now_s + REST_S
                return
            self._before = 0
        if wanting and not rises and self.streams < self.limits.streams_max:
            self._before, self._rate_before = self.streams, delivered
            self.streams = min(2 * self.streams, self.limits.streams_max)


@define
class Pilot:
    """The steering of one link: `novacron.Steering`."""

    limits: Limits
    shares: Shares
    flow: Flow = field(factory=Flow, init=False)
    cruise: Cruise = field(factory=Cruise, init=False)
    count: Count = field(init=False)
    _floor_s: float = field(default=float("inf"), init=False)

    def __attrs_post_init__(self) -> None:
        self.count = Count(self.limits)

    def decide(self, now_s: float, readings: Sequence[PathReading], backlog: bool) -> Steer:
        found = [reading for reading in readings if reading.rtt_s > 0]
        if not found:
            return Steer(streams=self.count.streams, rate=self._share(now_s, None, backlog))
        rtt_s = min(reading.rtt_s for reading in found)
        self._floor_s = min(reading.min_rtt_s or reading.rtt_s for reading in found)
        self.flow.look(now_s, readings, rtt_s)
        near = self._floor_s < NEAR_S
        bbr = all(reading.congestion_control == "bbr" for reading in found)
        if near:
            return self._steer(now_s, None, backlog)
        if bbr:
            least = min(STREAMS_BBR, self.limits.streams_max)
            self.count.streams = max(self.count.streams, least)
            self.cruise.decide(now_s, rtt_s, self._floor_s, self.flow, backlog)
        queue_s = rtt_s - self._floor_s
        quiet = queue_s < 2 * max(QUEUE_FOUND[0] * self._floor_s, QUEUE_FOUND[1])
        held = self.cruise.rate is not None and self.flow.sent > HELD * self.cruise.rate
        if self.flow.known():
            wanting = backlog and quiet and not held
            self.count.decide(now_s, rtt_s, self.flow.delivered, wanting=wanting)
        return self._steer(now_s, self.cruise.rate, backlog)

    def _steer(self, now_s: float, rate: float | None, backlog: bool) -> Steer:
        measured = self.flow.delivered
        if self.limits.share_max < 1.0 and rate is not None:
            rate *= self.limits.share_max
        share = self._share(now_s, rate, backlog)
        others = max(self.count.streams - 1, 1)
        pace = None if rate is None else int(rate * STREAM_HEADROOM / others)
        unsent = int(min(max(measured * UNSENT_S, UNSENT_BYTES[0]), UNSENT_BYTES[1]))
        return Steer(
            streams=self.count.streams,
            rate=share if rate is None else rate if share is None else min(rate, share),
            pace=pace,
            unsent_bytes=unsent if self.flow.known() else UNSENT_UNKNOWN,
        )

    def _share(self, now_s: float, rate: float | None, backlog: bool) -> float | None:
        want = 0.0 if not backlog else float("inf") if rate is None else rate
        return self.shares.of(id(self), want, now_s)
