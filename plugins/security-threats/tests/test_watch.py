"""The watch: what is suspected, after how much, with which words; and what never is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_security_threats import (
    Alert,
    Attempt,
    Fault,
    Proof,
    Reach,
    Sent,
    Watch,
    WatchSettings,
)
from novacron_security_threats._watch import distance_km
from novacron_security_threats.simulation import ATTACKS, simulate

DAY = 86400.0
BERLIN, SYDNEY, POTSDAM = (52.52, 13.40), (-33.87, 151.21), (52.39, 13.06)


def refused(watch: Watch, count: int, every_s: float, **who: str) -> list[Alert]:
    event = Attempt(**{"identity": "eve", **who}, accepted=False)
    return [alert for n in range(count) for alert in watch.handle(event, n * every_s)]


def test_guesses_in_a_row_are_brute_force_and_the_reason_has_the_figures() -> None:
    (alert,) = refused(Watch(), 7, 2.0)
    assert (alert.detector, alert.identity, alert.at_s) == ("brute-force", "eve", 12.0)
    assert alert.score >= 1
    assert alert.reasons == (
        "7 refused attempts in 12 s; an honest identity makes at most 1 a minute",
    )


def test_now_and_then_a_wrong_attempt_is_no_brute_force() -> None:
    assert refused(Watch(), 500, 61.0) == []


def test_attempts_that_are_granted_are_no_brute_force() -> None:
    watch = Watch()
    assert not any(watch.handle(Attempt(identity="bob"), float(n)) for n in range(100))


def test_a_few_guesses_at_each_of_many_identities_give_their_origin_away() -> None:
    watch = Watch()
    found: list[Alert] = []
    for n in range(10):
        event = Attempt(identity=f"user{n}", origin="192.0.2.9", accepted=False)
        found += watch.handle(event, 3.0 * n)
    assert [(one.identity, one.origin) for one in found] == [("", "192.0.2.9")]


def test_a_renewed_certificate_is_no_theft_while_streams_of_both_overlap() -> None:
    watch = Watch()
    seen = [("a", 0.0), ("b", DAY), ("a", DAY + 30), ("b", DAY + 60), ("c", 2 * DAY)]
    for fingerprint, at in seen:
        assert not watch.handle(Proof(identity="beta", fingerprint=fingerprint), at)


def test_a_certificate_that_was_replaced_and_comes_back_is_theft() -> None:
    watch = Watch()
    for fingerprint, at in (("aaaa", 0.0), ("bbbb", DAY)):
        watch.handle(Proof(identity="beta", fingerprint=fingerprint), at)
    (alert,) = watch.handle(Proof(identity="beta", fingerprint="aaaa"), DAY + 3600)
    assert alert.detector == "token-theft"
    assert alert.reasons == ("its credential aaaa is used again 3600 s after bbbb took its place",)


def test_three_certificates_within_minutes_are_theft() -> None:
    watch = Watch()
    found: list[Alert] = []
    for n, fingerprint in enumerate("abc"):
        found += watch.handle(Proof(identity="beta", fingerprint=fingerprint), 60.0 * n)
    assert [one.detector for one in found] == ["token-theft"]


@pytest.mark.parametrize(
    ("place", "after_s", "suspected"),
    [(SYDNEY, 3600.0, True), (SYDNEY, 20 * 3600.0, False), (POTSDAM, 1.0, False)],
)
def test_travel_that_no_plane_makes_is_theft(
    place: tuple[float, float], after_s: float, suspected: bool
) -> None:
    watch = Watch()
    watch.handle(Proof(identity="ann", fingerprint="a", place=BERLIN), 0.0)
    found = watch.handle(Proof(identity="ann", fingerprint="a", place=place), after_s)
    assert bool(found) is suspected
    assert all("km/h" in one.reasons[0] for one in found)


def test_distances_are_those_of_the_earth() -> None:
    assert distance_km(BERLIN, SYDNEY) == pytest.approx(16090, rel=0.01)
    assert distance_km(BERLIN, BERLIN) == 0


def test_one_new_target_after_the_other_is_lateral_movement_once_habits_are_known() -> None:
    watch = Watch()
    for n in range(50):
        assert not watch.handle(Reach(identity="ann", target=f"own{n}"), 60.0 * n)
    found: list[Alert] = []
    for n in range(10):
        found += watch.handle(Reach(identity="ann", target=f"foreign{n}"), 2 * DAY + 60 * n)
        assert not watch.handle(Reach(identity="ann", target="own1"), 2 * DAY + 60 * n)
    assert [one.detector for one in found] == ["lateral-movement"]
    assert "'foreign" in found[0].reasons[0]


def test_a_volume_far_above_the_usual_is_exfiltration_before_its_span_ends() -> None:
    watch = Watch()
    for n in range(48):
        watch.handle(Sent(identity="ann", bytes=2 << 30), n * 3600.0)
    found: list[Alert] = []
    for n in range(200):
        found += watch.handle(Sent(identity="ann", bytes=1 << 30), 3 * DAY + n)
    assert [one.detector for one in found] == ["exfiltration"]
    assert found[0].at_s < 3 * DAY + 60


def test_the_first_move_of_an_identity_is_no_exfiltration_but_a_whole_disk_array_is() -> None:
    watch = Watch()
    watch.handle(Sent(identity="ann", bytes=1), 0.0)
    assert not watch.handle(Sent(identity="ann", bytes=8 << 30), 2 * DAY)
    (alert,) = watch.handle(Sent(identity="ann", bytes=1 << 40), 2 * DAY + 60)
    assert "hardly anything before" in alert.reasons[0]


def test_a_thief_does_not_teach_what_is_usual() -> None:
    watch = Watch()
    for n in range(48):
        watch.handle(Sent(identity="ann", bytes=1 << 30), n * 3600.0)
    found: list[Alert] = []
    for n in range(5):
        found += watch.handle(Sent(identity="ann", bytes=1 << 38), (3 + n) * DAY)
    assert len(found) == 5


def test_breaches_of_protocol_add_up_and_broken_links_do_not() -> None:
    watch = Watch()
    event = Fault(identity="beta", what="a frame of an unknown kind")
    found = [alert for n in range(6) for alert in watch.handle(event, 5.0 * n)]
    assert [one.detector for one in found] == ["protocol-abuse"]
    assert "a frame of an unknown kind" in found[0].reasons[0]
    quiet = Watch()
    assert not any(quiet.handle(event, 3600.0 * n) for n in range(1000))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_memory_is_bounded_and_nothing_is_raised_whatever_comes(seed: int) -> None:
    rng = random.Random(seed)
    watch = Watch(WatchSettings(identities=16, targets=8))
    now = 0.0
    for _ in range(300):
        who = rng.choice(("", "a" * 1000, f"u{rng.randrange(100)}"))
        now += rng.choice((0.0, 1e-9, 1.0, 1e9))
        event = rng.choice(
            (
                Attempt(identity=who, origin=who, accepted=rng.random() < 0.1),
                Proof(identity=who, fingerprint=f"{rng.randrange(3)}", place=(rng.random(), 0.0)),
                Reach(identity=who, target=f"{rng.randrange(1000)}" * 200),
                Sent(identity=who, bytes=rng.choice((0, -5, 1 << 80))),
                Fault(identity=who, what="x" * 5000),
            )
        )
        for alert in watch.handle(event, now):
            assert alert.score >= 1
            assert alert.reasons
            assert max(map(len, (*alert.reasons, alert.identity, alert.origin))) < 600
    assert watch.remembered() <= 16


@pytest.mark.parametrize(
    "wrong",
    [{"failures_per_min": 20.0}, {"certainty": 0.0}, {"identities": 0}, {"new_targets_per_h": 0.0}],
)
def test_settings_that_could_never_hold_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        WatchSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_every_attack_is_found_among_honest_peers_and_no_honest_one_is_suspected() -> None:
    outcome = simulate(11, peers=10, days=3.0)
    missed = [one.attack for one in outcome.found if one.delay_s is None]
    assert set(missed) <= {"exfiltration"}  # a peer that moves as much every day hides it
    assert sum(outcome.false_alerts.values()) <= 1
    assert len(outcome.found) == len(ATTACKS)


def test_a_simulation_is_the_same_for_the_same_seed() -> None:
    one, other = (simulate(3, peers=3, days=1.5) for _ in range(2))
    assert one == other
