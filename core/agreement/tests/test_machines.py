"""The replicated state machines: laws, exactly once, snapshots."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_agreement import keyvalue as kv
from novacron_agreement import machine as shared
from novacron_agreement import ownership as own
from novacron_agreement.machine import SnapshotError, StateMachine
from novacron_agreement.ownership import Outcome, Record

FIRST = Record("m1", "alpha", 1)
SECOND = Record("m1", "beta", 2, "s-1")
MACHINES: tuple[type[StateMachine], ...] = (own.OwnershipMachine, kv.KeyValueMachine)

every_machine = pytest.mark.parametrize("kind", MACHINES, ids=lambda kind: kind.__name__)


def do(machine: own.OwnershipMachine, command: bytes) -> Outcome:
    return own.outcome(machine.apply(1, command))


def test_a_record_is_written_over_the_epoch_that_was_expected() -> None:
    machine = own.OwnershipMachine()
    assert do(machine, own.advance(FIRST, expected_epoch=0)) == Outcome(True, FIRST)
    assert do(machine, own.advance(SECOND, expected_epoch=0)) == Outcome(False, FIRST)
    assert do(machine, own.advance(SECOND, expected_epoch=1)) == Outcome(True, SECOND)
    assert do(machine, own.advance(FIRST, expected_epoch=None)) == Outcome(False, SECOND)
    assert machine.read("m1") == SECOND


def test_writing_what_holds_already_succeeds() -> None:
    machine = own.OwnershipMachine()
    for expected in (0, 0, 7, None):
        assert do(machine, own.advance(FIRST, expected_epoch=expected)).done


def test_forgetting_needs_the_epoch_that_holds_and_may_be_repeated() -> None:
    machine = own.OwnershipMachine()
    do(machine, own.advance(FIRST, expected_epoch=0))
    assert do(machine, own.forget("m1", epoch=2)) == Outcome(False, FIRST)
    assert do(machine, own.forget("m1", epoch=1)) == Outcome(True, None)
    assert do(machine, own.forget("m1", epoch=1)) == Outcome(True, None)
    assert machine.owned_by("alpha") == []


def test_a_forgetting_that_is_logged_twice_spares_the_machines_next_life() -> None:
    machine = own.OwnershipMachine()
    do(machine, own.advance(FIRST, expected_epoch=0))
    forget = own.forget("m1", epoch=1, client="c", number=1)
    assert do(machine, forget).done
    do(machine, own.advance(FIRST, expected_epoch=0))
    assert do(machine, forget).done
    assert machine.read("m1") == FIRST


def test_owned_by_is_in_the_order_of_names() -> None:
    machine = own.OwnershipMachine()
    for name in ("b", "c", "a"):
        do(machine, own.advance(Record(name, "alpha", 1), expected_epoch=0))
    assert [record.machine for record in machine.owned_by("alpha")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "record",
    [Record("", "a", 1), Record("m", "", 1), Record("m", "a", 0), Record("m" * 300, "a", 1)],
)
def test_an_impossible_record_is_refused(record: Record) -> None:
    machine = own.OwnershipMachine()
    assert do(machine, own.advance(record, expected_epoch=None)).error
    assert machine.snapshot() == own.OwnershipMachine().snapshot()


def test_a_map_is_put_compared_and_deleted() -> None:
    machine = kv.KeyValueMachine()

    def ask(command: bytes) -> kv.Answer:
        return kv.answer(machine.apply(1, command))

    assert ask(kv.put("k", b"1")) == kv.Answer(True, None)
    assert ask(kv.get("k")) == kv.Answer(True, b"1")
    assert ask(kv.compare_and_set("k", b"2", b"3")) == kv.Answer(False, b"1")
    assert ask(kv.compare_and_set("k", b"1", b"3")) == kv.Answer(True, b"1")
    assert ask(kv.delete("k")) == kv.Answer(True, b"3")
    assert ask(kv.compare_and_set("k", None, b"4")) == kv.Answer(True, None)
    assert ask(kv.compare_and_set("k", b"4", None)) == kv.Answer(True, b"4")
    assert machine.keys() == []


def test_a_request_that_is_logged_twice_is_done_once_and_answered_alike() -> None:
    machine = kv.KeyValueMachine()
    ask = kv.compare_and_set("k", None, b"1", client="c", number=1)
    first = machine.apply(1, ask)
    assert machine.apply(2, ask) == first
    machine.apply(3, kv.delete("k", client="c", number=2))
    assert kv.answer(machine.apply(4, ask)).error
    assert machine.get("k") is None


def test_a_forgotten_client_is_told_so_instead_of_being_served_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared, "CLIENTS_MAX", 2)
    machine = kv.KeyValueMachine()
    for client in ("a", "b", "c"):
        machine.apply(1, kv.put("k", client.encode(), client=client, number=1))
    assert (
        "not known any more" in kv.answer(machine.apply(2, kv.get("k", client="a", number=2))).error
    )
    assert kv.answer(machine.apply(2, kv.get("k", client="b", number=2))).done


@every_machine
@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_answered_and_never_raise(kind: type[StateMachine], data: bytes) -> None:
    machine = kind()
    assert isinstance(machine.apply(1, data), bytes)


@every_machine
@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_a_damaged_snapshot_is_refused_and_changes_nothing(
    kind: type[StateMachine], data: bytes
) -> None:
    machine = kind()
    before = machine.snapshot()
    with pytest.raises(SnapshotError):
        machine.restore(data)
    assert machine.snapshot() == before


COMMANDS = st.one_of(
    st.builds(kv.put, st.sampled_from("xyz"), st.binary(max_size=3)),
    st.builds(
        lambda k, v, c, n: kv.put(k, v, client=c, number=n),
        st.sampled_from("xyz"),
        st.binary(max_size=3),
        st.sampled_from("abc"),
        st.integers(1, 4),
    ),
    st.builds(
        lambda m, o, e, x: own.advance(Record(m, o, e), expected_epoch=x),
        st.sampled_from("xyz"),
        st.sampled_from("abc"),
        st.integers(1, 4),
        st.none() | st.integers(0, 3),
    ),
)


@every_machine
@given(st.lists(COMMANDS, max_size=30), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_a_snapshot_in_the_middle_changes_nothing(
    kind: type[StateMachine], commands: list[bytes], at: int
) -> None:
    straight, restored = kind(), kind()
    for index, command in enumerate(commands):
        if index == at:
            fresh = kind()
            fresh.restore(restored.snapshot())
            restored = fresh
        assert straight.apply(index, command) == restored.apply(index, command)
    assert straight.snapshot() == restored.snapshot()


def test_a_client_that_numbers_from_0_is_refused_and_breaks_nothing() -> None:
    machine = kv.KeyValueMachine()
    found = kv.answer(machine.apply(1, kv.put("k", b"v", client="c", number=0)))
    assert not found.done
    assert "from 1" in found.error
    assert machine.get("k") is None
