"""The evacuation as a protocol: what it asks for when something happens, and what it never does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from novacron_placement_itp import Link, Need, Target
from novacron_placement_itp._evacuation import (
    Action,
    Begin,
    Cancel,
    Ended,
    Evacuation,
    Event,
    Finish,
    Gone,
    MakePlan,
    Planned,
    Progress,
    Rules,
    Save,
    Say,
    Status,
    Stop,
    Survey,
    Tick,
)
from novacron_placement_itp._fluid import Stage
from novacron_placement_itp._planner import Steady

GIB = 1 << 30


def survey(*nodes: str, free: int = 10, rate: float = 100e6) -> Survey:
    return Survey(
        targets=[Target(node=node, free_memory_bytes=free * GIB) for node in nodes],
        links=[
            Link(name=f"the way to {node}", targets=frozenset((node,)), rate=rate) for node in nodes
        ],
    )


class Driven:
    """An evacuation whose plans are made at once."""

    def __init__(self, *machines: str, rules: Rules | None = None, **more: Any) -> None:
        needs = [Need(machine=name, memory_bytes=GIB, wire_bytes=1e9) for name in machines]
        self.core = Evacuation.of(needs, rules or Rules(), **more)
        self.steady = Steady()
        self.now_s = 0.0

    def feed(self, event: Event, *, at_s: float | None = None) -> list[Action]:
        self.now_s = self.now_s if at_s is None else at_s
        queue, asked = [event], list[Action]()
        while queue:
            for action in self.core.handle(queue.pop(0), self.now_s):
                if isinstance(action, MakePlan):
                    queue.append(Planned(*self.steady.choose(action.problem, action.present)))
                else:
                    asked.append(action)
        return asked

    def begun(self, event: Event, *, at_s: float | None = None) -> dict[str, str]:
        asked = self.feed(event, at_s=at_s)
        return {action.machine: action.target for action in asked if isinstance(action, Begin)}

    def end(self, machine: str, **more: Any) -> list[Action]:
        return self.feed(Ended(machine, **{"moved": True, **more}))

    def said(self, actions: list[Action]) -> list[str]:
        return [action.text for action in actions if isinstance(action, Say)]


def test_it_plans_once_it_has_seen_the_targets_and_begins_what_the_plan_begins() -> None:
    driven = Driven("vm1", "vm2", "vm3")
    assert driven.feed(Tick()) == []
    asked = driven.feed(survey("b", "c"))
    begins = [action for action in asked if isinstance(action, Begin)]
    assert {begin.target for begin in begins} == {"b", "c"}
    assert len({begin.priority for begin in begins}) == len(begins)
    # What it has decided is durable before it is done.
    for begin in begins:
        assert isinstance(asked[asked.index(begin) - 1], Save)


def test_it_is_over_when_the_last_machine_has_moved() -> None:
    driven = Driven("vm1", "vm2")
    driven.feed(survey("b", "c"))
    assert Finish() not in driven.end("vm1")
    assert driven.end("vm2")[-1] == Finish()
    assert [case.status for case in driven.core.cases.values()] == [Status.MOVED] * 2
    assert driven.feed(Tick()) == []


def test_a_failed_move_is_tried_again_later_and_in_the_end_somewhere_else() -> None:
    driven = Driven("vm", rules=Rules(backoff_s=2.0))
    target = driven.begun(survey("b", "c"))["vm"]
    driven.end("vm", moved=False, reason="the link broke")
    assert driven.begun(Tick(), at_s=1.0) == {}
    assert driven.begun(Tick(), at_s=3.0) == {"vm": target}
    driven.end("vm", moved=False, reason="the link broke")
    (other,) = {"b", "c"} - {target}
    assert driven.begun(Tick(), at_s=9.0) == {"vm": other}


def test_a_target_that_refuses_a_machine_is_not_asked_for_it_again() -> None:
    driven = Driven("vm")
    target = driven.begun(survey("b", "c"))["vm"]
    driven.end("vm", moved=False, reason="no network net0", again=False)
    (other,) = {"b", "c"} - {target}
    assert driven.begun(Tick(), at_s=5.0) == {"vm": other}
    asked = driven.feed(Ended("vm", moved=False, reason="no network net0", again=False))
    assert asked[-1] == Finish()
    assert driven.core.cases["vm"].status is Status.STAYED
    assert driven.core.cases["vm"].reason == "b: no network net0; c: no network net0"


def test_attempts_are_bounded_and_the_last_reason_is_kept() -> None:
    driven = Driven("vm", rules=Rules(attempts_max=3, attempts_per_target_max=9, backoff_s=1.0))
    driven.feed(survey("b"))
    for attempt in range(3):
        driven.feed(Tick(), at_s=10.0 * attempt + 10)
        driven.end("vm", moved=False, reason=f"fault {attempt}")
    assert driven.core.finished
    assert driven.core.cases["vm"].reason == "3 attempts failed, the last: fault 2"


def test_a_target_that_vanishes_is_waited_for_a_while_and_then_left_for_the_others() -> None:
    driven = Driven("vm1", "vm2", rules=Rules(target_patience_s=20.0))
    where = driven.begun(survey("b", "c"))
    (lost,) = (name for name, target in where.items() if target == "b")
    assert driven.said(driven.feed(survey("c"), at_s=5.0)) == ["b does not answer"]
    assert Stop(lost, "b does not answer") not in driven.feed(Tick(), at_s=19.0)
    assert Stop(lost, "b does not answer") in driven.feed(Tick(), at_s=21.0)
    assert driven.feed(Tick(), at_s=22.0) == []
    driven.end(lost, moved=False, reason="cancelled by the operator")
    assert driven.begun(survey("c"), at_s=25.0) == {lost: "c"}


def test_a_target_that_is_back_is_used_again() -> None:
    driven = Driven("vm1", "vm2", rules=Rules(moves_max=1))
    (first,) = driven.begun(survey("b"))
    assert driven.said(driven.feed(survey(), at_s=5.0))[0] == "b does not answer"
    assert "b answers again" in driven.said(driven.feed(survey("b"), at_s=10.0))
    driven.end(first)
    assert [case.target for case in driven.core.cases.values()] == ["b", "b"]


def test_a_hand_over_to_a_target_that_vanished_is_not_waited_for_for_ever() -> None:
    driven = Driven("vm", rules=Rules(target_patience_s=20.0))
    driven.feed(survey("b"))
    driven.feed(Progress("vm", Stage.FINISH, 0.0))
    driven.feed(survey(), at_s=5.0)
    assert Stop("vm", "b does not answer") in driven.feed(Tick(), at_s=30.0)
    assert driven.feed(Tick(), at_s=60.0)[-1] == Finish()
    assert driven.core.cases["vm"].reason == "it was being handed over to b, which does not answer"


def test_memory_is_never_promised_twice_though_it_fills_slowly() -> None:
    driven = Driven("vm1", "vm2", "vm3")
    assert len(driven.begun(survey("b", free=2))) == 2
    # Nothing of the first two has arrived yet, so b still says that all is free.
    assert driven.begun(survey("b", free=2), at_s=30.0) == {}
    driven.end("vm1")
    driven.end("vm2")
    assert driven.core.cases["vm3"].status is Status.STAYED
    assert "0 MiB of memory are free" in driven.core.cases["vm3"].reason


def test_machines_that_are_stopped_or_gone_are_named_and_those_elsewhere_count_as_moved() -> None:
    driven = Driven("vm1", "vm2", "vm3")
    driven.feed(survey("b", "c"))
    driven.feed(Gone("vm1", "it is stopped"))
    driven.feed(Gone("vm2", "c owns it already", "c"))
    assert driven.end("vm3")[-1] == Finish()
    assert [(case.status, case.target) for case in driven.core.cases.values()][:2] == [
        (Status.STAYED, ""),
        (Status.MOVED, "c"),
    ]
    assert driven.core.cases["vm1"].reason == "it is stopped"


@pytest.mark.parametrize("hard", [False, True])
def test_a_cancelled_evacuation_begins_nothing_and_lets_what_is_under_way_end(hard: bool) -> None:
    driven = Driven("vm1", "vm2", "vm3", "vm4", rules=Rules(moves_max=1))
    (moving,) = driven.begun(survey("b", "c"))
    asked = driven.feed(Cancel(hard=hard))
    assert [action.machine for action in asked if isinstance(action, Stop)] == [moving] * hard
    assert driven.end(moving, moved=not hard)[-1] == Finish()
    stayed = [case for case in driven.core.cases.values() if case.status is Status.STAYED]
    assert len(stayed) == 3 + hard
    assert {case.reason for case in stayed} == {"the evacuation was cancelled"}


def test_a_forecast_that_moves_is_a_reason_for_another_plan_but_not_at_once() -> None:
    driven = Driven(*(f"vm{n}" for n in range(9)), rules=Rules(replan_s=10.0, moves_max=2))
    driven.feed(survey("b", "c"))
    first = driven.core.plan
    slow = Survey(
        targets=survey("b", "c").targets,
        links=[
            Link(name="the way to b", targets=frozenset("b"), rate=10e6),
            Link(name="the way to c", targets=frozenset("c"), rate=100e6),
        ],
    )
    driven.feed(slow, at_s=2.0)
    assert driven.core.plan is first
    asked = driven.feed(slow, at_s=12.0)
    assert driven.core.plans == 2
    assert driven.said(asked)[0].startswith("plan 2: ")


def test_where_no_target_answers_the_machines_stay_with_that_reason() -> None:
    driven = Driven("vm", rules=Rules(target_patience_s=20.0))
    assert driven.feed(survey()) == []
    assert driven.feed(Tick(), at_s=21.0)[-1] == Finish()
    assert driven.core.cases["vm"].reason == "no target answers"


def test_a_late_plan_is_told_once() -> None:
    driven = Driven("vm1", "vm2", rules=Rules(deadline_s=5.0, replan_s=1.0, moves_max=1))
    said = driven.said(driven.feed(survey("b")))
    assert "the deadline is kept with a chance of 0% now" in said
    assert driven.said(driven.feed(survey("b"), at_s=2.0)) == []


def test_what_is_saved_is_enough_to_go_on() -> None:
    driven = Driven("vm1", "vm2", "vm3", apart=[frozenset({"vm1", "vm2"})])
    driven.feed(survey("b", "c"))
    driven.end("vm1")
    saved = json.loads(json.dumps(driven.core.to_json()))
    back = Evacuation.from_json(saved)
    assert back.to_json() == driven.core.to_json()
    assert back.cases["vm1"].status is Status.MOVED
    with pytest.raises((KeyError, TypeError, ValueError)):
        Evacuation.from_json(saved | {"rules": {"odd": 1}})
