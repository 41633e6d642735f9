"""The steering on imagined paths: it finds the rate from any start, keeps the queue short, and
follows changes."""

from __future__ import annotations

import pytest
from amst_path import Drive, Path
from novacron import PathReading
from novacron_transport_amst import Limits, Pilot, Shares
from novacron_transport_amst._search import OLD_S, RIPE_S, Search

# Bytes of payload per second that fit, the round trip in seconds, and the loss.
LINKS = {
    "1 Gbit/s, 50 ms, 0.1 %": (120e6, 0.05, 0.001),
    "200 Mbit/s, 80 ms, 0.5 %": (24.1e6, 0.08, 0.005),
    "100 Mbit/s, 150 ms, 1 %": (12.05e6, 0.15, 0.01),
    "100 Mbit/s, 300 ms, 2 %": (12.05e6, 0.3, 0.02),
}
# A link of the same rate takes packets with headers; 92 % of it are this part of the payload.
GOAL = 0.955
# Beyond what the path loses, this part may be sent again.
WASTE = 0.01

Link = tuple[float, float, float]
every_link = pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
seeds = pytest.mark.parametrize("seed", range(6))
few_seeds = pytest.mark.parametrize("seed", range(2))


def path_of(link: Link, seed: int = 1, kind: str = "bbr") -> Path:
    """With a queue of one bandwidth-delay product."""
    rate, floor_s, loss = link
    return Path(
        lambda now_s: rate, lambda now_s: floor_s, rate * floor_s, loss, kind=kind, seed=seed
    )


def bounded_s(link: Link) -> float:
    """By when the rate is found, whatever was believed before."""
    return 4 + 25 * link[1]


@every_link
@seeds
def test_the_rate_is_found_and_kept_with_a_short_queue(link: Link, seed: int) -> None:
    drive = Drive(path_of(link, seed))
    drive.go(bounded_s(link))
    drive.path.longest_s = drive.path.dropped = 0.0
    assert drive.go(12) > GOAL
    assert drive.path.dropped == 0
    assert drive.path.longest_s < max(0.45 * link[1], 0.06)
    assert drive.resent() < link[2] + WASTE


@every_link
@few_seeds
@pytest.mark.parametrize("believed", [0.0, 0.01, 0.5, 3.0])
def test_no_belief_about_the_path_is_a_trap(link: Link, seed: int, believed: float) -> None:
    drive = Drive(path_of(link, seed))
    drive.go(bounded_s(link))
    drive.pilot.cruise.path = believed * link[0]
    drive.go(10 + 50 * link[1])
    assert drive.go(8) > GOAL


@few_seeds
def test_without_a_search_that_is_kept_open_random_loss_is_a_trap(seed: int) -> None:
    """That the model has what the real thing has."""
    link = LINKS["100 Mbit/s, 300 ms, 2 %"]
    trapped = Drive(path_of(link, seed), kept=False)
    trapped.go(bounded_s(link))
    kept = Drive(path_of(link, seed))
    kept.go(bounded_s(link))
    assert kept.go(10) > trapped.go(10) + 0.03


@every_link
@few_seeds
def test_a_rate_that_falls_to_a_tenth_is_followed(link: Link, seed: int) -> None:
    path = path_of(link, seed)
    path.rate = lambda now_s: link[0] if now_s < 15 else link[0] / 10
    drive = Drive(path)
    drive.go(15)
    drive.go(5 + 20 * link[1])
    path.longest_s = 0.0
    assert drive.go(15) > 0.92
    # A chunk of the link takes a while on so slow a path.
    assert path.longest_s < max(1.5 * link[1], 0.15)
    assert drive.resent() < link[2] + 2 * WASTE


@every_link
@few_seeds
def test_a_rate_that_grows_tenfold_is_found(link: Link, seed: int) -> None:
    path = path_of(link, seed)
    path.rate = lambda now_s: link[0] / 10 if now_s < 15 else link[0]
    drive = Drive(path)
    drive.go(15)
    drive.go(5 + 25 * link[1])
    assert drive.go(10) > GOAL
    assert drive.resent() < link[2] + 2 * WASTE


@every_link
@few_seeds
def test_what_others_leave_is_used_and_what_they_take_is_given(link: Link, seed: int) -> None:
    path = path_of(link, seed)
    path.others = lambda now_s: 0.4 * link[0] if 12 < now_s < 24 else 0.0
    drive = Drive(path)
    drive.go(12 + 4 + 5 * link[1])
    path.longest_s = 0.0
    assert drive.go(24 - path.now_s) > GOAL
    assert path.longest_s < max(0.8 * link[1], 0.06)
    drive.go(4 + 15 * link[1])
    assert drive.go(8) > 0.95
    assert drive.resent() < link[2] + 2 * WASTE


@every_link
@few_seeds
def test_a_longer_route_is_no_queue(link: Link, seed: int) -> None:
    path = path_of(link, seed)
    path.floor_s = lambda now_s: link[1] if now_s < 15 else 1.6 * link[1]
    drive = Drive(path)
    drive.go(15)
    drive.go(25)
    assert drive.go(10) > GOAL


@every_link
@few_seeds
def test_a_busy_host_that_delays_acknowledgements_makes_it_slower_but_holds_nothing_down(
    link: Link, seed: int
) -> None:
    path = path_of(link, seed)
    path.noise_s = 0.01
    drive = Drive(path)
    drive.go(30)
    assert drive.go(10) > 0.9


@every_link
def test_a_link_that_waits_for_its_source_keeps_the_rate_that_it_found(link: Link) -> None:
    drive = Drive(path_of(link))
    drive.go(bounded_s(link))
    drive.go(4)
    found = drive.pilot.cruise.path
    drive.supply = link[0] / 20
    drive.go(10)
    assert drive.pilot.cruise.path == pytest.approx(found, rel=0.1)
    drive.supply = float("inf")
    drive.go(1 + 8 * link[1])
    assert drive.go(5) > 0.9


def test_the_side_that_only_acknowledges_is_never_held() -> None:
    """A pace of what acknowledgements need once held up the whole link."""
    pilot = Pilot(Limits(), Shares(None))
    for look in range(600):
        reading = PathReading(
            at_s=look / 10,
            rtt_s=0.15 + (0.04 if look > 5 else 0.0),  # the peer acknowledges late
            min_rtt_s=0.15,
            rate_bytes_per_s=1e3,
            sent_bytes=40 * look,
            delivered_bytes=40 * look,
            congestion_control="bbr",
            stream=1,
        )
        steer = pilot.decide(look / 10, [reading], backlog=False)
        assert (steer.rate, steer.pace) == (None, None)


@few_seeds
def test_a_burst_of_few_packets_at_the_start_is_no_queue(seed: int) -> None:
    """It once ended the search at a hundredth of the path."""
    link = LINKS["100 Mbit/s, 300 ms, 2 %"]
    path = path_of(link, seed)
    path.floor_s = lambda now_s: 0.3 if now_s < 0.7 or now_s > 3.0 else 0.315
    drive = Drive(path)
    drive.go(bounded_s(link))
    assert drive.go(8) > GOAL


def test_no_pace_is_too_slow_for_acknowledgements_and_signs_of_life() -> None:
    drive = Drive(path_of((12e6, 0.1, 0.0)))
    drive.go(8)
    drive.pilot.cruise.path = 0.0
    drive.go(0.11)
    assert drive.steer.pace is not None
    assert drive.steer.pace > 5_000


def test_there_are_as_many_streams_as_the_kernels_buffers_make_necessary() -> None:
    link = LINKS["100 Mbit/s, 150 ms, 1 %"]
    counts = []
    for stream_bytes in (64 << 20, 4 << 20, 1 << 20, 64 << 10):
        drive = Drive(path_of(link), Pilot(Limits(stream_bytes=stream_bytes), Shares(None)))
        drive.go(10)
        counts.append(drive.steer.streams)
    assert counts[0] == 2
    assert counts == sorted(counts)
    assert counts[-1] == 16  # the ceiling


# Streams that do not measure the path.


@few_seeds
def test_streams_that_loss_holds_back_are_added_within_seconds(seed: int) -> None:
    link = LINKS["100 Mbit/s, 150 ms, 1 %"]
    alone = Drive(path_of(link, seed, "cubic"), Pilot(Limits(streams_max=1), Shares(None)))
    alone.go(5)
    several = Drive(path_of(link, seed, "cubic"))
    several.go(5)
    assert several.steer.streams == 16
    assert several.steer.rate is None
    assert several.go(20) > 8 * alone.go(20)


def test_no_streams_are_added_where_the_path_is_full() -> None:
    drive = Drive(path_of((400e3, 0.15, 0.01), kind="cubic"))
    drive.go(60)
    assert drive.steer.streams <= 8


def test_the_ceiling_of_streams_is_kept() -> None:
    link = LINKS["100 Mbit/s, 150 ms, 1 %"]
    drive = Drive(path_of(link, kind="cubic"), Pilot(Limits(streams_max=5), Shares(None)))
    drive.go(20)
    assert drive.steer.streams == 5


# Limits.


def test_a_near_peer_gets_one_stream_and_no_limit() -> None:
    drive = Drive(path_of((1e9, 0.0005, 0.0)))
    drive.go(2)
    assert (drive.steer.streams, drive.steer.rate, drive.steer.pace) == (1, None, None)


def test_a_share_of_the_bottleneck_leaves_the_rest_to_others() -> None:
    drive = Drive(path_of((12.5e6, 0.1, 0.0)), Pilot(Limits(share_max=0.5), Shares(None)))
    drive.go(10)
    assert 0.4 < drive.go(20) < 0.55


# The search of a stream.


def test_a_search_that_ended_is_begun_anew_if_the_stream_is_paced() -> None:
    search = Search()
    assert not search.over(0.0, searching=False, paced=True, repairing=True)  # it has only begun
    assert not search.over(1.0, searching=True, paced=True, repairing=True)
    assert not search.over(1.0, searching=False, paced=False, repairing=True)
    assert search.over(1.0, searching=False, paced=True, repairing=True)
    assert not search.over(1.1, searching=False, paced=True, repairing=True)


def test_a_search_is_begun_anew_before_the_stream_would_pause_to_measure() -> None:
    for spread in (0.0, 1.0):
        for repairing, age_s in ((False, RIPE_S + spread), (True, OLD_S - spread)):
            search = Search(spread)
            search.over(0.0, searching=True, paced=True, repairing=repairing)
            early = search.over(age_s - 0.1, searching=True, paced=True, repairing=repairing)
            assert not early
            assert search.over(age_s, searching=True, paced=True, repairing=repairing)
            assert age_s < 10
