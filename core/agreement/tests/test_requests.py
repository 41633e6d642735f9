"""A node asks one thing at a time, under numbers that only grow, and is told what became of it."""

from __future__ import annotations

from attrs import define, field
from novacron_agreement.machine import CLIENTS_MAX, OVERTAKEN
from novacron_agreement.ownership import Outcome, OwnershipMachine, Record, forget
from novacron_agreement.requests import Requests

HERE = Record("m1", "alpha", 1)


@define
class Told:
    """What the asker was told, in its order."""

    said: list[tuple[Outcome | None, str]] = field(factory=list)

    def __call__(self, outcome: Outcome | None, why: str) -> None:
        self.said.append((outcome, why))


def serve(requests: Requests, machine: OwnershipMachine) -> None:
    """Let the register answer all that is asked."""
    while (asked := requests.next()) is not None:
        assert requests.said(asked.number, machine.apply(1, asked.command))


def test_requests_go_one_after_the_other_behind_an_introduction() -> None:
    requests, told = Requests("alpha", 1), Told()
    requests.advance(HERE, 0, told)
    requests.read("m1", told)
    first = requests.next()
    assert first is not None
    assert first.introduces
    assert requests.next() is None
    machine = OwnershipMachine()
    requests.said(first.number, machine.apply(1, first.command))
    serve(requests, machine)
    # The read forgets nothing: it was asked for epoch 0, which no record has.
    assert told.said == [(Outcome(True, HERE), ""), (Outcome(False, HERE), "")]


def test_an_answer_that_nobody_waits_for_is_let_go() -> None:
    requests, told, machine = Requests("alpha", 1), Told(), OwnershipMachine()
    requests.read("m1", told)
    serve(requests, machine)
    requests.read("m1", told)
    asked = requests.next()
    assert asked is not None
    answer = machine.apply(1, asked.command)
    assert not requests.said(asked.number - 1, answer)
    requests.give_up(asked.number)
    assert not requests.said(asked.number, answer)
    assert told.said == [(Outcome(True, None), ""), (None, "")]


def test_why_nothing_was_done_is_told() -> None:
    machine, told = OwnershipMachine(), Told()
    for life in (2, 1):
        requests = Requests("alpha", life)
        requests.read("m1", told)
        serve(requests, machine)
    assert told.said == [(Outcome(True, None), ""), (None, OVERTAKEN)]


def test_whom_the_register_has_forgotten_asks_again_once() -> None:
    requests, told, machine = Requests("alpha", 1), Told(), OwnershipMachine()
    requests.advance(HERE, 0, told)
    serve(requests, machine)
    for number in range(CLIENTS_MAX):
        machine.apply(1, forget("", epoch=0, client=f"c{number}", number=1))
    requests.read("m1", told)
    serve(requests, machine)
    assert told.said[-1] == (Outcome(False, HERE), "")
