"""Who said a thing decides whether it is done: a liar can lose only what it has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from novacron_agreement import ownership
from novacron_agreement.ownership import Outcome, OwnershipMachine, Record
from novacron_consensus_bft._judge import JudgedRegister, said_by


class Told:
    """A register, and members that ask it for things."""

    def __init__(self, register: JudgedRegister) -> None:
        self.register = register
        self._index = count(1)
        self._numbers: dict[str, Iterator[int]] = {}

    def says(self, origin: str, command: bytes) -> Outcome:
        answer = self.register.apply(next(self._index), said_by(origin, command))
        return ownership.outcome(answer)

    def number(self, origin: str) -> int:
        return next(self._numbers.setdefault(origin, count(1)))

    def advance(self, origin: str, record: Record, expected: int | None = None) -> Outcome:
        command = ownership.advance(
            record, expected_epoch=expected, client=origin, number=self.number(origin)
        )
        return self.says(origin, command)

    def forget(self, origin: str, machine: str, epoch: int) -> Outcome:
        command = ownership.forget(machine, epoch=epoch, client=origin, number=self.number(origin))
        return self.says(origin, command)


@pytest.fixture
def told() -> Told:
    return Told(JudgedRegister("owner"))


def test_an_owner_makes_gives_away_and_forgets_its_record(told: Told) -> None:
    assert told.advance("a", Record("vm1", "a", 1), 0).done
    given_away = Record("vm1", "b", 2, "s-1")
    assert told.advance("a", given_away, 1).done
    assert told.advance("b", given_away).done  # what holds may be said again by who got it
    assert told.advance("b", Record("vm1", "a", 3), 2).done  # and it may give it back
    assert told.forget("a", "vm1", 3).done
    assert told.register.read("vm1") is None


def test_nobody_takes_or_removes_what_is_anothers(told: Told) -> None:
    held = Record("vm1", "a", 5)
    assert told.advance("a", held, 0).done
    for expected in (None, 5):
        taken = told.advance("liar", Record("vm1", "liar", 6), expected)
        assert (taken.done, taken.present) == (False, held)
    spoilt = told.advance("liar", Record("vm1", "a", 2**63 - 1))
    assert (spoilt.done, spoilt.present) == (False, held)
    removed = told.forget("liar", "vm1", 5)
    assert (removed.done, removed.present) == (False, held)
    assert told.forget("liar", "vm1", 0).present == held  # that is how a record is read


def test_nobody_makes_a_record_for_another(told: Told) -> None:
    refused = told.advance("liar", Record("vm1", "a", 1), 0)
    assert not refused.done
    assert "its writer's" in refused.error
    assert told.register.read("vm1") is None


def test_nobody_speaks_in_anothers_name(told: Told) -> None:
    for client in ("a", ""):
        command = ownership.forget("", epoch=0, client=client, number=2**62)
        assert "in the name of" in told.says("liar", command).error
    # So its numbers are not used up.
    assert told.advance("a", Record("vm1", "a", 1), 0).done


def test_a_request_that_is_repeated_gets_the_answer_that_it_had(told: Told) -> None:
    told.advance("a", Record("vm1", "a", 1), 0)
    command = ownership.advance(
        Record("vm1", "b", 2), expected_epoch=1, client="a", number=told.number("a")
    )
    first = told.says("a", command)
    assert first.done
    assert told.advance("b", Record("vm1", "c", 3), 2).done
    assert told.says("a", command) == first


def test_where_every_member_may_write_only_names_are_judged() -> None:
    told = Told(JudgedRegister("member"))
    assert told.advance("a", Record("vm1", "b", 1), 0).done
    assert told.advance("c", Record("vm1", "c", 2), 1).done
    command = ownership.forget("vm1", epoch=2, client="a", number=9)
    assert "in the name of" in told.says("c", command).error


def test_a_snapshot_is_that_of_any_register_of_ownership(told: Told) -> None:
    told.advance("a", Record("vm1", "a", 1), 0)
    other = OwnershipMachine()
    other.restore(told.register.snapshot())
    assert other.read("vm1") == Record("vm1", "a", 1)


@given(st.binary(max_size=60))
def test_what_is_no_command_changes_nothing(junk: bytes) -> None:
    told = Told(JudgedRegister("owner"))
    told.advance("a", Record("vm1", "a", 1), 0)
    before = told.register.snapshot()
    assert not told.says("liar", junk).done
    assert told.register.snapshot() == before
