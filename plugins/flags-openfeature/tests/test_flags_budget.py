"""The error budget: what it promises, and that each of its parts is needed for it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from novacron_flags_openfeature import _budget

FLAG, NEW, OLD = "provider.compression", "new", "old"
NOW = 1_000_000.0
allowed_shares = st.floats(0.001, 0.6)


def outcome(module: ModuleType, at_s: float = NOW, **facts: Any) -> Any:
    return module.Outcome(**{"at_s": at_s, "machine": "vm", "target": "b"} | facts)


def filled(module: ModuleType, failed: list[bool], **limits: Any) -> Any:
    budget = module.Budget(module.BudgetLimits(**limits))
    for number, bad in enumerate(failed):
        budget.record(FLAG, NEW, outcome(module, NOW + number, failed=bad))
    return budget


def over(budget: Any, value: str = NEW, now_s: float = NOW + 300) -> str:
    found: str = budget.verdict(FLAG, value, OLD, now_s).over
    return found


# Each law takes the module, so that the mutants below can be held to it.


def law_evidence_is_expected_to_grow_by_one_a_move_while_the_share_is_allowed(
    module: ModuleType,
) -> None:
    """So the mean number of moves until it reaches N is at least N."""
    rng = random.Random(5)
    for allowed in (0.003, 0.01, 0.2, 0.5):
        for length in (0, 1, 2, 7, 40):
            answers = [rng.random() < 0.3 for _ in range(length)]
            after_yes = module.evidence([*answers, True], allowed)
            after_no = module.evidence([*answers, False], allowed)
            expected = allowed * after_yes + (1 - allowed) * after_no
            assert expected == pytest.approx(module.evidence(answers, allowed) + 1, rel=1e-9)


def law_a_sound_variant_is_seldom_rolled_back(module: ModuleType) -> None:
    rng = random.Random(11)
    lengths = []
    for _ in range(12):
        budget = filled(module, [], failure_rate=0.1, false_alarm_moves=30, window_moves=20)
        move = 0
        while move < 150:
            move += 1
            budget.record(FLAG, NEW, outcome(module, failed=rng.random() < 0.1))
            if over(budget):
                break
        lengths.append(move)
    assert sum(lengths) / len(lengths) >= 30


def law_a_variant_that_always_fails_is_rolled_back_by_its_third_move(module: ModuleType) -> None:
    assert [over(filled(module, [True] * moves)) for moves in (0, 1, 2, 3)] == [
        *("", "", ""),
        "fails",
    ]


def law_many_good_moves_do_not_hide_that_it_has_begun_to_fail(module: ModuleType) -> None:
    assert over(filled(module, [False] * 195)) == ""
    assert over(filled(module, [False] * 195 + [True] * 3)) == "fails"


def law_it_is_never_judged_by_fewer_moves_than_asked(module: ModuleType) -> None:
    assert over(filled(module, [True] * 9, least_moves=10)) == ""
    assert over(filled(module, [True] * 10, least_moves=10)) == "fails"


def law_what_is_old_does_not_count(module: ModuleType) -> None:
    budget = filled(module, [True] * 5, window_s=100.0)
    assert over(budget, now_s=NOW + 10) == "fails"
    assert over(budget, now_s=NOW + 105) == ""
    assert budget.verdict(FLAG, NEW, OLD, NOW + 103).moves == 2


def law_only_the_last_moves_count(module: ModuleType) -> None:
    budget = filled(module, [True] * 5 + [False] * 20, window_moves=20)
    assert (budget.verdict(FLAG, NEW, OLD, NOW).failures, over(budget)) == (0, "")


def law_the_fallback_is_never_rolled_back(module: ModuleType) -> None:
    budget = module.Budget()
    for _ in range(20):
        budget.record(FLAG, OLD, outcome(module, failed=True))
    assert over(budget, value=OLD) == ""


def law_what_is_forgotten_does_not_count_and_what_came_after_does(module: ModuleType) -> None:
    budget = filled(module, [True] * 6)
    budget.forget(FLAG, NEW, NOW + 3)
    assert [one.at_s for one in budget.outcomes(FLAG, NEW)] == [NOW + 4, NOW + 5]


def law_flags_and_values_are_judged_apart(module: ModuleType) -> None:
    budget = filled(module, [True] * 6)
    assert over(budget, value="another") == ""
    assert budget.verdict("provider.transport", NEW, OLD, NOW).moves == 0
    assert budget.known() == [(FLAG, NEW)]


def law_moves_that_send_more_than_the_same_machines_did_are_too_many(module: ModuleType) -> None:
    def compared(new: float, old: float, **facts: Any) -> Any:
        budget = module.Budget()
        for machine in "abc":
            for ratio in (old, old * 0.1, old * 3):
                told = outcome(module, machine=machine, bytes_ratio=ratio)
                budget.record(FLAG, OLD, told)
        for number in range(20):
            told = {"machine": "abc"[number % 3], "bytes_ratio": new} | facts
            budget.record(FLAG, NEW, outcome(module, **told))
        return over(budget)

    assert compared(0.30, 0.2) == "bytes"
    assert compared(0.25, 0.2) == ""  # by a quarter is allowed
    assert compared(0.30, 0.2, machine="never-moved-before") == ""
    assert compared(0.30, 0.2, target="elsewhere") == ""


def law_moves_that_take_longer_than_the_same_machines_did_are_too_many(module: ModuleType) -> None:
    def compared(moves: int, seconds: float, **limits: Any) -> Any:
        budget = module.Budget(module.BudgetLimits(**limits))
        budget.record(FLAG, OLD, outcome(module, seconds=1.0))
        # One that failed took no time that could be compared.
        budget.record(FLAG, OLD, outcome(module, failed=True))
        for _ in range(moves):
            budget.record(FLAG, NEW, outcome(module, seconds=seconds, bytes_ratio=0.1))
        return over(budget)

    assert compared(16, 2.5) == "time"
    assert compared(15, 2.5) == ""
    assert compared(40, 2.0) == ""
    assert compared(40, 2.5, time_regression=0.0) == ""


# The one that takes longest stands last: a mutant is dropped by the first that notices.
LAWS: list[Callable[[ModuleType], None]] = sorted(
    (member for name, member in vars().copy().items() if name.startswith("law_")),
    key=lambda law: law is law_a_sound_variant_is_seldom_rolled_back,
)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
def test_law(law: Callable[[ModuleType], None]) -> None:
    law(_budget)


@given(st.lists(st.booleans(), max_size=30), allowed_shares)
def test_evidence_is_expected_to_grow_by_one_whatever_came_before(
    answers: list[bool], allowed: float
) -> None:
    after = [_budget.evidence([*answers, last], allowed) for last in (True, False)]
    expected = allowed * after[0] + (1 - allowed) * after[1]
    assert expected == pytest.approx(_budget.evidence(answers, allowed) + 1, rel=1e-6)


@given(st.lists(st.booleans(), max_size=30), allowed_shares)
def test_a_failure_is_more_evidence_than_a_success(answers: list[bool], allowed: float) -> None:
    bad, good = (_budget.evidence([*answers, last], allowed) for last in (True, False))
    assert bad > good >= 0


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 11), allowed_shares)
def test_a_success_in_place_of_a_failure_is_never_more_evidence(
    answers: list[bool], at: int, allowed: float
) -> None:
    better = [answer and number != at for number, answer in enumerate(answers)]
    assert _budget.evidence(better, allowed) <= _budget.evidence(answers, allowed) * (1 + 1e-9)


def test_the_longest_window_with_nothing_but_failures_is_a_number() -> None:
    assert _budget.evidence([True] * 500, 0.0001) > 1e100
    assert _budget.evidence([False] * 500, 0.5) > 0


MUTANTS = {
    "only the whole window is a stretch": ("total += stretch", "total = stretch"),
    "stretches begin with the oldest move": (
        "enumerate(reversed(answers), 1)",
        "enumerate(answers, 1)",
    ),
    "the mixture goes over all shares": ("range(yes + 1)", "range(moves + 2)"),
    "the mixture is not divided by its width": (
        "(no + 1) * log_no\n    return",
        "no * log_no\n    return",
    ),
    "failures weigh like successes": ("yes += answer", "yes += 1"),
    "no least number of moves": ("len(mine) >= limits.least_moves and found", "found"),
    "one move more than asked": ("len(mine) >= limits", "len(mine) > limits"),
    "any evidence will do": ("found >= limits.false_alarm_moves", "found >= 1"),
    "old moves count": ("if outcome.at_s >= oldest", "if True"),
    "the window has no end": ("max(1, self.limits.window_moves)", "10_000"),
    "the fallback is judged": (" and value != fallback else", " else"),
    "forgetting takes everything": ("if outcome.at_s > until_s", "if False"),
    "forgetting keeps the last": ("outcome.at_s > until_s", "outcome.at_s >= until_s"),
    "all machines are compared": (
        "((outcome.machine, outcome.target), figure)",
        "((0, 0), figure)",
    ),
    "targets are not told apart": (
        "(outcome.machine, outcome.target), figure",
        "(outcome.machine, ''), figure",
    ),
    "no regression is allowed": ("* (1 + by)", ""),
    "the bound is over it": ("figure > _middle", "figure >= _middle"),
    "the least is usual": ("_middle(usual[key])", "min(usual[key])"),
    "zero is a bound": ("if by <= 0:", "if by < 0:"),
    "bytes for time": (
        'outcome.bytes_ratio if what == "bytes" else outcome.seconds',
        "outcome.bytes_ratio",
    ),
    "time for bytes": (
        'outcome.bytes_ratio if what == "bytes" else outcome.seconds',
        "outcome.seconds",
    ),
    "chance is a quarter": ("WORSE_BY_CHANCE: Final = 0.5", "WORSE_BY_CHANCE: Final = 0.25"),
    "flags are not told apart": (
        "self._windows.get((flag, value), ())",
        "next(iter(self._windows.values()), ())",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_laws_notice_when_a_part_is_wrong(name: str) -> None:
    old, new = MUTANTS[name]
    source = Path(_budget.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} stands there {source.count(old)} times"
    mutant = ModuleType("mutant")
    sys.modules["mutant"] = mutant  # attrs looks its classes' modules up
    try:
        exec(compile(source.replace(old, new), "mutant", "exec"), vars(mutant))
        assert any(not _holds(law, mutant) for law in LAWS), "no law has noticed"
    finally:
        del sys.modules["mutant"]


def _holds(law: Callable[[ModuleType], None], module: ModuleType) -> bool:
    try:
        law(module)
    except AssertionError:
        return False
    return True
