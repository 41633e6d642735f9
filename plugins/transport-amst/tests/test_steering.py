"""The steering on imagined paths: it finds the rate, keeps the queue short, and follows changes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron import PathReading, Steer
from novacron_transport_amst import Limits, Pilot, Shares

TICK_S = 0.1
STEP_S = 0.01


@define
class Path:
    """A bottleneck with a queue, and TCP streams that fill it as far as they are let.

    A ``bbr`` stream doubles its rate each round trip until the queue shows, and then follows what
    is delivered; it looks for more once in eight round trips. A ``cubic`` one is held at ``alone``
    by loss.

    Attributes:
        rate: Bytes per second that leave the queue, at a time.
        floor_s: The round trip without the queue.
        loss: Of what is sent, at random.
        noise_s: What a round trip may seem longer.
        others: Bytes per second of cross traffic that fills the queue.
    """

    rate: Callable[[float], float]
    floor_s: float
    loss: float = 0.0
    noise_s: float = 0.0
    kind: str = "bbr"
    alone: float = 0.0
    seed: int = 1
    rng: random.Random = field(init=False)
    now_s: float = field(default=0.0, init=False)
    queue: float = field(default=0.0, init=False)
    worst_s: float = field(default=0.0, init=False)
    dropped: float = field(default=0.0, init=False)
    estimates: list[float] = field(factory=list, init=False)
    searching: list[bool] = field(factory=list, init=False)
    sent: list[float] = field(factory=list, init=False)
    resent: list[float] = field(factory=list, init=False)
    delivered: list[float] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def grow_to(self, streams: int) -> None:
        while len(self.sent) < streams:
            self.estimates.append(self.alone or 15_000 / self.floor_s)
            self.searching.append(self.kind == "bbr")
            for counts in (self.sent, self.resent, self.delivered):
                counts.append(0.0)

    def step(self, steer: Steer, backlog: bool) -> None:
        """One hundredth of a second."""
        self.grow_to(steer.streams)
        rate, used = self.rate(self.now_s), range(steer.streams)
        wants = [self._wants(one, steer) if backlog else 0.0 for one in used]
        total = sum(wants)
        if steer.rate is not None and total > steer.rate:
            wants = [want * steer.rate / total for want in wants]
            total = steer.rate
        self.queue = max(0.0, self.queue + (total - rate) * STEP_S)
        over = max(0.0, self.queue - rate * self.floor_s)  # it holds one round trip
        self.queue -= over
        self.dropped += over
        out = min(total, rate) if not self.queue else rate
        for one in used:
            part = wants[one] / total if total else 0.0
            lost = out * self.loss * part * STEP_S + over * part
            self.sent[one] += wants[one] * STEP_S
            self.resent[one] += lost
            self.delivered[one] += out * part * (1 - self.loss) * STEP_S
            if part and self.kind == "bbr":
                self._learn(one, out * part, wants[one])
        self.now_s += STEP_S
        self.worst_s = max(self.worst_s, self.queue / rate)

    def _wants(self, one: int, steer: Steer) -> float:
        gain = 2.0 if self.searching[one] else 1.0
        if self.kind == "bbr" and int(self.now_s / self.floor_s) % 8 == one % 8:
            gain = max(gain, 1.25)
        want = self.estimates[one] * gain
        return want if steer.pace is None else min(want, steer.pace)

    def _learn(self, one: int, got: float, want: float) -> None:
        share = STEP_S / self.floor_s
        if self.queue > self.rate(self.now_s) * self.floor_s * 0.7:
            self.searching[one] = False
        if got > self.estimates[one]:
            self.estimates[one] += (got - self.estimates[one]) * share
        elif self.queue:  # it has enough to send, so that a lower figure counts
            self.estimates[one] += (got - self.estimates[one]) * share / 10

    def readings(self, streams: int) -> list[PathReading]:
        self.grow_to(streams)
        delay_s = self.queue / self.rate(self.now_s)
        return [
            PathReading(
                at_s=self.now_s,
                rtt_s=self.floor_s + delay_s + self.rng.random() * self.noise_s,
                min_rtt_s=self.floor_s,
                rate_bytes_per_s=self.estimates[one],
                sent_bytes=int(self.sent[one]),
                resent_bytes=int(self.resent[one]),
                delivered_bytes=int(self.delivered[one]),
                congestion_control=self.kind,
                stream=one + 1,
            )
            for one in range(streams)
        ]


@define
class Drive:
    """A pilot on a path."""

    path: Path
    pilot: Pilot = field(factory=lambda: Pilot(Limits(), Shares(None)))
    steer: Steer = field(factory=Steer)
    backlog: bool = True

    def go(self, seconds: float) -> float:
        """Run so long; what fraction of the path's rate was delivered, losses made good."""
        before, could = sum(self.path.delivered), 0.0
        for tick in range(int(seconds / STEP_S)):
            if tick % int(TICK_S / STEP_S) == 0:
                readings = self.path.readings(self.steer.streams)
                self.steer = self.pilot.decide(self.path.now_s, readings, self.backlog)
            could += self.path.rate(self.path.now_s) * STEP_S * (1 - self.path.loss)
            self.path.step(self.steer, self.backlog)
        self.path.grow_to(self.steer.streams)
        return (sum(self.path.delivered) - before) / could


def steady(rate: float) -> Callable[[float], float]:
    return lambda now_s: rate


LINKS = {
    "1 Gbit/s, 50 ms": (125e6, 0.05, 0.001),
    "200 Mbit/s, 80 ms": (25e6, 0.08, 0.005),
    "100 Mbit/s, 150 ms": (12.5e6, 0.15, 0.01),
    "100 Mbit/s, 300 ms": (12.5e6, 0.3, 0.02),
    "10 Mbit/s, 40 ms": (1.25e6, 0.04, 0.0),
}
every_link = pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)


@every_link
def test_the_rate_is_found_and_kept_with_a_short_queue(link: tuple[float, float, float]) -> None:
    rate, floor_s, loss = link
    drive = Drive(Path(steady(rate), floor_s, loss))
    drive.go(5 + 20 * floor_s)
    drive.path.worst_s = drive.path.dropped = 0.0
    assert drive.go(30) > 0.95
    assert drive.path.dropped == 0
    assert drive.path.worst_s < max(0.3 * floor_s, 0.04)


@every_link
@pytest.mark.parametrize("seed", range(3))
def test_a_busy_host_that_delays_acknowledgements_costs_little(
    link: tuple[float, float, float], seed: int
) -> None:
    rate, floor_s, loss = link
    drive = Drive(Path(steady(rate), floor_s, loss, noise_s=0.01, seed=seed))
    drive.go(5 + 20 * floor_s)
    assert drive.go(30) > 0.9


def test_a_rate_that_falls_to_a_tenth_makes_no_queue_for_long() -> None:
    drive = Drive(Path(lambda now_s: 12.5e6 if now_s < 10 else 1.25e6, 0.1, 0.005))
    drive.go(15)
    assert drive.go(20) > 0.9
    drive.path.worst_s = 0.0
    drive.go(10)
    assert drive.path.worst_s < 0.05


def test_a_rate_that_grows_tenfold_is_found_within_seconds() -> None:
    drive = Drive(Path(lambda now_s: 1.25e6 if now_s < 10 else 12.5e6, 0.05, 0.001))
    drive.go(10)
    drive.go(10)
    assert drive.go(10) > 0.9


def test_jitter_that_looks_like_a_queue_does_not_lower_the_rate_for_good() -> None:
    drive = Drive(Path(steady(12.5e6), 0.05, 0.001))
    drive.go(10)
    drive.path.floor_s = 0.09  # another route: the round trip is longer from now on
    drive.go(25)
    assert drive.go(20) > 0.85


def test_streams_are_added_where_each_is_held_back_by_loss_and_none_where_they_do_not_help() -> (
    None
):
    lossy = Drive(Path(steady(12.5e6), 0.15, 0.01, kind="cubic", alone=150_000))
    lossy.go(60)
    assert lossy.steer.streams == 16
    assert lossy.steer.rate is None
    alone = Drive(Path(steady(150_000 * 3), 0.15, 0.01, kind="cubic", alone=150_000))
    alone.go(60)
    assert alone.steer.streams <= 8


def test_the_ceiling_of_streams_is_kept() -> None:
    drive = Drive(
        Path(steady(12.5e6), 0.15, 0.01, kind="cubic", alone=150_000),
        Pilot(Limits(streams_max=5), Shares(None)),
    )
    drive.go(60)
    assert drive.steer.streams == 5


def test_a_near_peer_gets_one_stream_and_no_limit() -> None:
    drive = Drive(Path(steady(1e9), 0.0005))
    drive.go(5)
    assert (drive.steer.streams, drive.steer.rate, drive.steer.pace) == (1, None, None)


def test_a_share_of_the_bottleneck_leaves_the_rest_to_others() -> None:
    drive = Drive(Path(steady(12.5e6), 0.1), Pilot(Limits(share_max=0.5), Shares(None)))
    drive.go(10)
    assert 0.3 < drive.go(20) < 0.6


def test_a_link_that_waits_for_its_source_keeps_the_rate_that_it_found() -> None:
    drive = Drive(Path(steady(12.5e6), 0.1, 0.005))
    drive.go(15)
    found = drive.steer.rate
    drive.backlog = False
    drive.go(10)
    assert drive.steer.rate == pytest.approx(found, rel=0.1)
    drive.backlog = True
    assert drive.go(5) > 0.85


# Shares.


def test_one_link_has_all_and_two_have_half_each() -> None:
    shares = Shares(100.0)
    inf = float("inf")
    assert shares.of(1, inf, 0.0) == 100.0
    shares.of(2, inf, 0.0)
    assert (shares.of(1, inf, 0.1), shares.of(2, inf, 0.1)) == (50.0, 50.0)


def test_what_a_link_does_not_want_goes_to_the_others() -> None:
    shares = Shares(90.0)
    for key, want in ((1, 10.0), (2, float("inf")), (3, float("inf"))):
        shares.of(key, want, 0.0)
    assert shares.of(2, float("inf"), 0.0) == 40.0


def test_a_link_that_is_no_more_leaves_its_share() -> None:
    shares = Shares(90.0)
    shares.of(1, 90.0, 0.0)
    shares.of(2, 90.0, 0.0)
    assert shares.of(2, 90.0, 5.0) == 90.0


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=12), st.floats(1, 1e9))
def test_the_shares_of_links_that_use_what_they_want_never_exceed_the_total(
    wants: list[float], total: float
) -> None:
    shares = Shares(total)
    for key, want in enumerate(wants):
        shares.of(key, want, 0.0)
    given_out = [shares.of(key, want, 0.0) for key, want in enumerate(wants)]
    used = [min(want, one) for want, one in zip(wants, given_out, strict=True) if one is not None]
    assert sum(used) <= total * (1 + 1e-9)
    # Nobody has less than an equal part unless it wants less.
    for want, one in zip(wants, given_out, strict=True):
        assert one is not None
        assert one >= min(want, total / len(wants)) * (1 - 1e-9)
