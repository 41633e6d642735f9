"""A node's lease, and who may break it: no two clocks have to agree."""

from __future__ import annotations

import pytest
from novacron_agreement.leases import (
    Break,
    Confirm,
    Guard,
    Lease,
    LeaseSettings,
    Look,
    Renew,
    Watch,
    lease_of,
    taken_over,
)
from novacron_agreement.ownership import OwnershipMachine, Record, advance, outcome

SETTINGS = LeaseSettings(lease_ms=1000, renew_ms=300, drift=0.01)


def record(epoch: int, owner: str = "a", session: str = "a1.1") -> Record:
    return Record("lease/a", owner, epoch, session)


def held(now_ms: int = 0) -> Lease:
    """A lease that was asked for at that time, for the first time, and granted at once."""
    lease = Lease("a", "a1", SETTINGS)
    assert lease.tick(now_ms) == [Look()]
    assert lease.looked(now_ms, record(4)) == [Renew(record(5), 4)]
    lease.written(now_ms, True, record(5))
    return lease


def test_a_node_looks_before_it_asks_and_confirms_before_it_runs_anything() -> None:
    lease = Lease("a", "a1", SETTINGS)
    assert lease.tick(50) == [Look()]
    assert lease.tick(60) == []
    assert lease.looked(70, None) == [Renew(record(1), 0)]
    assert not lease.holds(80)
    assert lease.written(90, True, record(1)) == [Confirm(), Guard(1070)]
    assert lease.holds(1069)
    assert not lease.holds(1070)


def test_a_lease_counts_from_the_moment_it_was_asked_for() -> None:
    lease = held()
    assert lease.tick(299) == []
    assert lease.tick(300) == [Renew(record(6, session="a1.2"), 5)]
    assert lease.written(900, True, record(6)) == [Guard(1300)]


def test_a_broken_lease_is_asked_for_anew_and_everything_confirmed_anew() -> None:
    lease = held()
    lease.tick(300)
    broken = record(6, "b", "b1.break.1")
    assert lease.written(2000, False, broken) == [Renew(record(7, session="a1.3"), 6)]
    assert not lease.holds(2001)
    assert lease.written(2010, True, record(7)) == [Confirm(), Guard(3000)]


def test_a_renewal_in_doubt_is_looked_for_and_what_held_before_still_does() -> None:
    lease = held()
    lease.tick(300)
    assert lease.unanswered() == []
    assert lease.holds(999)
    assert lease.tick(600) == [Look()]
    assert lease.looked(650, record(6)) == [Renew(record(7, session="a1.3"), 6)]
    assert lease.written(660, True, record(7)) == [Confirm(), Guard(1650)]


def test_answers_that_nobody_waits_for_change_nothing() -> None:
    lease = held()
    assert lease.looked(5, record(9)) == lease.written(5, False, None) == []
    assert lease.holds(6)


def test_without_takeovers_a_lease_never_runs_out() -> None:
    lease = Lease("a", "a1", LeaseSettings(takeover=False))
    lease.tick(0)
    lease.looked(0, None)
    assert not lease.holds(0)
    assert lease.written(0, True, record(1)) == [Confirm(), Guard(None)]
    assert lease.holds(10**9)


def test_a_lease_is_broken_only_after_nothing_was_seen_of_it_for_longer_than_it_may_last() -> None:
    watch = Watch("b", "b1", SETTINGS)
    assert SETTINGS.takeover_ms == 1022
    assert watch.run_out(10**6, "a") is None  # a lease that was never seen may be new
    watch.see(100, None)
    watch.see(100, record(5))
    watch.see(900, record(5))
    assert watch.run_out(1122, "a") is None
    assert watch.run_out(1123, "a") == Break("a", record(6, "b", "b1.break.1"), 5)
    watch.see(1124, record(6))
    assert watch.run_out(1125, "a") is None


def test_without_takeovers_no_lease_is_broken() -> None:
    watch = Watch("b", "b1", LeaseSettings(takeover=False))
    watch.see(0, record(5))
    assert watch.run_out(10**9, "a") is None


def test_a_machine_is_taken_only_while_the_break_holds() -> None:
    machine = OwnershipMachine()
    owned = Record("vm", "a", 7)
    machine.apply(1, advance(owned, expected_epoch=0))
    broken = record(6, "b")
    taken, while_ = taken_over(owned, "b", broken)
    assert (taken.owner, taken.epoch, while_) == ("b", 10, ("lease/a", 6))
    command = advance(taken, expected_epoch=7, only_while=while_)
    assert not outcome(machine.apply(2, command)).done  # there is no such break
    machine.apply(3, advance(broken, expected_epoch=None))
    machine.apply(4, advance(record(7), expected_epoch=6))
    assert not outcome(machine.apply(5, command)).done  # the owner is back
    machine.apply(6, advance(record(8, "b"), expected_epoch=7))
    taken, while_ = taken_over(owned, "b", record(8, "b"))
    command = advance(taken, expected_epoch=7, only_while=while_)
    assert outcome(machine.apply(7, command)).done
    assert machine.read("vm") == taken


def test_settings_that_would_pause_machines_by_one_lost_renewal_are_refused() -> None:
    with pytest.raises(ValueError, match="renew at least three times per lease"):
        LeaseSettings(lease_ms=1000, renew_ms=400)


def test_a_leases_record_is_named_after_its_node() -> None:
    assert lease_of("berlin-1") == "lease/berlin-1"
