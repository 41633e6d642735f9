"""A model of a path with its bottleneck, and of TCP streams on it, for the tests of the steering.

It has what has trapped a steering before: BBR that ends its search because random loss, and not the
path, kept it from growing; that does not lower its estimate while its sender had nothing more to
send, but does when a pace held it; that sends no more than what arrives for a round trip when it
repairs a loss, and next to nothing when it measures the round trip; and a drop-tail queue.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable

from attrs import define, field
from novacron import PathReading, Steer
from novacron_transport_amst import Limits, Pilot, Shares
from novacron_transport_amst._search import Search

STEP_S = 0.01
LOOK_STEPS = 10
MSS = 1448
CHUNK = 128 << 10
LOWAT = 64 << 10
GAIN = 2.89
PROBE_RTT_S = 0.2


@define(eq=False)
class Parcel:
    """What one stream sent in one step."""

    size: float
    lost: float
    number: int
    sent_s: float
    back_s: float
    delivered: float
    delivered_s: float
    starved: bool


@define(eq=False)
class Flowing:
    """One stream: Linux's BBR (version 1), or a window that halves by a third at each loss."""

    kind: str
    open_s: float
    min_rtt_s: float
    window: float = 10.0 * MSS
    pacing: float = field(init=False)
    pace: float = math.inf
    in_flight: float = 0.0
    waiting: float = 0.0
    to_resend: float = 0.0
    sent: float = 0.0
    resent: float = 0.0
    delivered: float = 0.0
    delivered_s: float = 0.0
    rtt_s: float = 0.0
    number: int = 0
    allowance: float = 0.0
    # BBR's.
    full: bool = False
    full_rate: float = 0.0
    full_rounds: int = 0
    rounds: int = 0
    round_ends: float = 0.0
    rates: deque[tuple[int, float]] = field(factory=deque)
    conserves: bool = False
    repairs_until: int = -1
    window_before: float = 0.0
    stamp_s: float = 0.0
    probe_until_s: float = 0.0
    search: Search = field(factory=Search)

    def __attrs_post_init__(self) -> None:
        self.pacing = GAIN * self.window / self.min_rtt_s
        self.stamp_s = self.delivered_s = self.open_s
        self.rtt_s = self.min_rtt_s

    @property
    def rate(self) -> float:
        return max((rate for _, rate in self.rates), default=0.0)

    def restart(self, now_s: float) -> None:
        """What naming another congestion control, and then this one again, does."""
        self.full, self.full_rate, self.full_rounds = False, 0.0, 0
        self.rates.clear()
        self.window_before, self.stamp_s, self.probe_until_s = 0.0, now_s, 0.0
        self.pacing = GAIN * self.window / self.rtt_s

    def takes(self, now_s: float) -> float:
        """How much it sends in this step."""
        if now_s < self.open_s:
            return 0.0
        window = 4.0 * MSS if now_s < self.probe_until_s else self.window
        pacing = min(self.pacing, self.pace) if self.kind == "bbr" else math.inf
        self.allowance = min(self.allowance + pacing * STEP_S, pacing * STEP_S + MSS)
        able = min(self.allowance, window - self.in_flight, self.waiting + self.to_resend)
        size = max(able, 0.0)
        self.allowance -= size
        return size

    def acknowledged(self, parcel: Parcel, now_s: float) -> None:
        self.in_flight -= parcel.size
        arrived = parcel.size - parcel.lost
        self.delivered += arrived
        self.delivered_s = now_s
        self.to_resend += parcel.lost
        sample_s = now_s - parcel.sent_s
        self.rtt_s += (sample_s - self.rtt_s) / 4
        if self.kind == "bbr":
            self._bbr(parcel, arrived, sample_s, now_s)
        elif parcel.lost and parcel.number > self.repairs_until:
            self.repairs_until, self.full = self.number, True
            self.window = max(0.7 * self.window, 2.0 * MSS)
        else:
            self.window += arrived if not self.full else MSS * arrived / self.window

    def _bbr(self, parcel: Parcel, arrived: float, sample_s: float, now_s: float) -> None:
        starts = parcel.delivered >= self.round_ends
        if starts:
            self.round_ends, self.conserves = self.delivered, False
            self.rounds += 1
        took_s = now_s - parcel.delivered_s
        rate = (self.delivered - parcel.delivered) / took_s if took_s > 0 else 0.0
        if not parcel.starved or rate >= self.rate:
            self.rates.append((self.rounds, rate))
            while self.rates[0][0] < self.rounds - 9:
                self.rates.popleft()
        if starts and not parcel.starved and not self.full:
            if self.rate >= 1.25 * self.full_rate:
                self.full_rate, self.full_rounds = self.rate, 0
            else:
                self.full_rounds += 1
                self.full = self.full_rounds >= 3
        if sample_s < self.min_rtt_s:
            self.min_rtt_s, self.stamp_s = sample_s, now_s
        if now_s - self.stamp_s > 10:
            self.stamp_s = now_s
            self.probe_until_s = now_s + PROBE_RTT_S + self.rtt_s
        self._bbr_window(parcel, arrived)
        gain = (1.25, 0.75, 1, 1, 1, 1, 1, 1)[self.rounds % 8] if self.full else GAIN
        if self.full or gain * self.rate > self.pacing:
            self.pacing = max(gain * self.rate, MSS / self.min_rtt_s)

    def _bbr_window(self, parcel: Parcel, arrived: float) -> None:
        self.window = max(self.window - parcel.lost, MSS)
        repairing = self.repairs_until >= 0
        if parcel.lost and not repairing:
            self.repairs_until, self.window_before = self.number, self.window
            self.conserves, self.round_ends = True, self.delivered
            self.window = self.in_flight + arrived
        elif repairing and parcel.number > self.repairs_until:
            self.window = max(self.window, self.window_before)
            self.repairs_until, self.conserves = -1, False
        if self.conserves:
            self.window = max(self.window, self.in_flight + arrived)
        else:
            target = (2.0 if self.full else GAIN) * self.rate * self.min_rtt_s + 3 * MSS
            if self.full:
                self.window = min(self.window + arrived, target)
            elif self.window < target:
                self.window += arrived
        self.window = max(self.window, 4.0 * MSS)


@define
class Path:
    """A bottleneck with a drop-tail queue.

    Attributes:
        rate: Bytes of payload per second that leave the queue, at a time.
        floor_s: The round trip without the queue, at a time.
        loss: Of the packets, at random.
        noise_s: What a round trip may seem longer, at random.
        room: Bytes that the queue holds.
        others: Bytes per second of other traffic in the queue, at a time.
    """

    rate: Callable[[float], float]
    floor_s: Callable[[float], float]
    room: float
    loss: float = 0.0
    noise_s: float = 0.0
    others: Callable[[float], float] = lambda now_s: 0.0
    kind: str = "bbr"
    seed: int = 1
    rng: random.Random = field(init=False)
    now_s: float = 0.0
    queue: float = 0.0
    streams: list[Flowing] = field(factory=list)
    parcels: deque[tuple[Flowing, Parcel]] = field(factory=deque)
    until_loss: float = field(init=False)
    free_s: float = 0.0
    fed_at: float | None = None
    longest_s: float = 0.0
    dropped: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.until_loss = self._gap()

    def _gap(self) -> float:
        """Packets until the next one that is lost."""
        return math.log(1 - self.rng.random()) / math.log(1 - self.loss) if self.loss else math.inf

    def step(self, steer: Steer, supply: float) -> None:
        """One hundredth of a second; ``supply``: bytes per second that the sender has."""
        rate, floor_s = self.rate(self.now_s), self.floor_s(self.now_s)
        while len(self.streams) < steer.streams:
            dialled_s = 3 * floor_s if self.streams else 0.0
            search = Search(len(self.streams) * 0.25 % 1.25)
            opened_s = self.now_s + dialled_s
            self.streams.append(Flowing(self.kind, opened_s, floor_s, search=search))
        self.queue = max(0.0, self.queue + (self.others(self.now_s) - rate) * STEP_S)
        self._feed(steer, supply)
        for stream in self.streams[: steer.streams]:
            stream.pace = math.inf if steer.pace is None else steer.pace
            self._send(stream, rate, floor_s)
        self.longest_s = max(self.longest_s, self.queue / rate)
        self.now_s += STEP_S
        while self.parcels and self.parcels[0][1].back_s <= self.now_s:
            stream, parcel = self.parcels.popleft()
            stream.acknowledged(parcel, parcel.back_s)

    def _feed(self, steer: Steer, supply: float) -> None:
        """The link hands chunks to streams that want one, as fast as it may."""
        rates = [rate for rate in (steer.rate, supply) if rate is not None]
        able = [s for s in self.streams[: steer.streams] if self.now_s >= s.open_s]
        if steer.rate != self.fed_at:  # as the link's meter does
            self.fed_at, self.free_s = steer.rate, min(self.free_s, self.now_s + 1.0)
        while able and self.free_s <= self.now_s and min(rates) > 0:
            stream = min(able, key=lambda one: one.waiting)
            if stream.waiting > max(LOWAT, STEP_S * (steer.pace or 0.0)):
                break
            stream.waiting += CHUNK
            if min(rates) < math.inf:
                self.free_s = max(self.free_s, self.now_s - STEP_S) + CHUNK / min(rates)

    def _send(self, stream: Flowing, rate: float, floor_s: float) -> None:
        size = stream.takes(self.now_s)
        if size <= 0:
            return
        again = min(size, stream.to_resend)
        stream.to_resend -= again
        stream.waiting -= size - again
        stream.sent += size
        stream.resent += again
        stream.in_flight += size
        self.until_loss -= size / MSS
        lost = 0.0
        while self.until_loss <= 0:
            lost += MSS
            self.until_loss += self._gap()
        self.queue += size
        over = max(0.0, self.queue - self.room)
        self.queue -= over
        self.dropped += over
        stream.number += 1
        parcel = Parcel(
            size=size,
            lost=min(lost + over, size),
            number=stream.number,
            sent_s=self.now_s,
            back_s=self.now_s + floor_s + self.queue / rate,
            delivered=stream.delivered,
            delivered_s=stream.delivered_s,
            starved=stream.waiting <= 0 and stream.in_flight < stream.window,
        )
        # Later ones may come back sooner when the rate rises or the route gets shorter.
        if self.parcels:
            parcel.back_s = max(parcel.back_s, self.parcels[-1][1].back_s)
        self.parcels.append((stream, parcel))

    def readings(self, count: int) -> list[PathReading]:
        found = []
        for place, stream in enumerate(self.streams[:count]):
            if self.now_s < stream.open_s:
                continue
            found.append(
                PathReading(
                    at_s=self.now_s,
                    rtt_s=stream.rtt_s + self.rng.random() * self.noise_s,
                    min_rtt_s=stream.min_rtt_s,
                    rate_bytes_per_s=stream.rate,
                    sent_bytes=int(stream.sent),
                    resent_bytes=int(stream.resent),
                    delivered_bytes=int(stream.delivered),
                    unsent_bytes=int(stream.waiting),
                    congestion_control=self.kind,
                    stream=place + 1,
                )
            )
        return found


@define
class Drive:
    """A pilot on a path, looking ten times a second.

    Attributes:
        supply: Bytes per second that there are to send.
        kept: Whether the searches of the streams are kept open, as the gauge does.
    """

    path: Path
    pilot: Pilot = field()
    steer: Steer = field(factory=Steer)
    supply: float = math.inf
    kept: bool = True

    @pilot.default
    def _usual(self) -> Pilot:
        # Where paths are wide, the kernel's buffers have been made larger.
        wide = self.path.room > 5e6
        return Pilot(Limits(stream_bytes=16 << 20 if wide else 4 << 20), Shares(None))

    def go(self, seconds: float) -> float:
        """Run so long; what fraction of the path's rate was delivered."""
        path = self.path
        before, could = sum(one.delivered for one in path.streams), 0.0
        for tick in range(round(seconds / STEP_S)):
            if tick % LOOK_STEPS == 0:
                self._look()
            free = path.rate(path.now_s) - path.others(path.now_s)
            could += free * STEP_S
            path.step(self.steer, self.supply)
        return (sum(one.delivered for one in path.streams) - before) / could

    def _look(self) -> None:
        path = self.path
        readings = path.readings(self.steer.streams)
        full = self.steer.rate is None or self.supply > self.steer.rate
        self.steer = self.pilot.decide(path.now_s, readings, self.supply > 0 and full)
        for stream in path.streams if self.kept and path.kind == "bbr" else []:
            paced = self.steer.pace is not None
            repairing = stream.repairs_until >= 0
            if stream.search.over(
                path.now_s, searching=not stream.full, paced=paced, repairing=repairing
            ):
                stream.restart(path.now_s)

    def resent(self) -> float:
        """What was sent again, as a part of what was sent."""
        sent = sum(one.sent for one in self.path.streams)
        return sum(one.resent for one in self.path.streams) / sent
