"""What the ways are forecast to carry, and who may ask for an evacuation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from novacron import MoveEstimate, NodeFacts, OperationRequest
from novacron_placement_itp import EvacuateSettings, novacron_check_operation
from novacron_placement_itp._evacuation import Rules
from novacron_placement_itp._fluid import Stage
from novacron_placement_itp._forecast import Forecast, wire_bytes
from novacron_placement_itp._paces import Paces


def forecast(share: float = 1.0, **settings: Any) -> Forecast:
    return Forecast(EvacuateSettings(**settings), share)


def rate(found: Forecast, target: str = "b") -> float:
    return found.links([target])[0].rate


def test_what_is_known_best_counts() -> None:
    found = forecast(rate_bytes_per_s=5e6)
    assert rate(found) == 5e6
    found.know("b", 10e6)
    assert rate(found) == 10e6
    told = MoveEstimate(bytes=(1e8, 2e8, 3e8), seconds=(8, 10, 20), confidence=0.9)
    found.know("b", 10e6, told)
    (link,) = found.links(["b"])
    assert (link.low, link.rate, link.high) == (1e7, 2e7, 2.5e7)
    assert rate(forecast(links={"b": 7e6})) == 50e6
    named = forecast(links={"b": 7e6})
    named.know("b", 10e6, told)
    assert rate(named) == 7e6


def test_an_estimate_that_nobody_measured_is_no_forecast() -> None:
    found = forecast()
    found.know("b", 10e6, MoveEstimate(bytes=(1, 2, 3), seconds=(1, 2, 3)))
    assert rate(found) == 10e6


@pytest.mark.parametrize("wrong", [None, 0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_cannot_be_is_not_believed(wrong: float | None) -> None:
    found = forecast(rate_bytes_per_s=5e6)
    found.know("b", wrong)
    assert rate(found) == 5e6


def test_the_moves_own_rate_is_taken_once_they_have_copied_for_a_while_and_followed() -> None:
    found = forecast(links={"b": 50e6})
    found.know("b", None)
    for second in range(5):
        found.saw("b", second, second * 10**7, copying=True)
    assert rate(found) == 50e6
    found.saw("b", 5, 5 * 10**7, copying=True)
    assert rate(found) == 1e7
    found.know("b", 50e6)  # what is measured here is worth more
    found.saw("b", 10, 15 * 10**7, copying=True)
    assert 1e7 < rate(found) < 2e7


def test_a_way_on_which_nothing_is_copied_tells_nothing() -> None:
    found = forecast(links={"b": 50e6})
    found.know("b", None)
    for second in range(20):
        found.saw("b", second, 1000, copying=second % 3 == 0)
    assert rate(found) == 50e6


def test_shares_and_the_uplink_are_links_too() -> None:
    found = forecast(0.5, links={"b": 4e6, "c": 2e6}, uplink_bytes_per_s=5e6)
    for target in "bc":
        found.know(target, None)
    assert [(link.rate, set(link.targets)) for link in found.links("bc")] == [
        (2e6, {"b"}),
        (1e6, {"c"}),
        (2.5e6, {"b", "c"}),
    ]


def test_bytes_come_from_a_measured_estimate_else_from_what_moves_have_shown() -> None:
    told = MoveEstimate(bytes=(1e6, 2e6, 4e6), confidence=0.9)
    assert wire_bytes(10**9, told, 0.4) == 2e6
    assert wire_bytes(10**9, MoveEstimate(bytes=(1, 2, 3)), 0.4) == 4e8
    found = forecast(wire_part=0.4)
    found.moved(10**9, 10**8)
    found.moved(10**9, 3 * 10**8)
    assert found.wire_part == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("subject", "may"),
    [("uid:0", True), ("node:east-2", True), ("node:friend", True), ("node:stranger", False)],
)
def test_only_nodes_of_the_site_and_those_allowed_may_ask(subject: str, may: bool) -> None:
    settings = EvacuateSettings(sites={"east": ["east-1", "east-2"]}, allow=["friend"])
    here = NodeFacts(
        name="east-1", state_dir=Path("/nonexistent"), settings={"operation.evacuate": settings}
    )
    asked = OperationRequest(kind="evacuate", machine="east-1", subject=subject)
    refusal = novacron_check_operation(asked, here)
    assert (refusal is None) is may
    if refusal is not None:
        assert "allow" in refusal.hint
    other = OperationRequest(kind="migrate", machine="vm", subject=subject)
    assert novacron_check_operation(other, here) is None


@pytest.mark.parametrize(
    "wrong", [{"links": {"b": 0}}, {"wire_part": 0}, {"attempts_max": 0}, {"margin": 1.0}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        EvacuateSettings(**wrong)


def test_what_moves_take_beside_their_bytes_is_learnt_from_them() -> None:
    paces, rules = Paces(), Rules(prepare_s=3.0, finish_s=1.0)
    for number, (prepare, copy, finish) in enumerate(((6, 10, 2), (8, 30, 4), (7, 20, 3))):
        name = f"vm{number}"
        paces.see(name, Stage.PREPARE, 0.5)
        paces.see(name, Stage.COPY, prepare)
        paces.see(name, Stage.COPY, prepare + 1)
        paces.see(name, Stage.FINISH, prepare + copy)
        paces.see(name, Stage.FINISH, prepare + copy + 1)
        paces.ended(name, prepare + copy + finish)
        if number == 0:
            assert paces.applied(rules) == rules
    learnt = paces.applied(rules)
    assert (learnt.prepare_s, learnt.finish_s) == (7, 3)
