"""The rules of ``[compliance.local]``: what they refuse, when, and which rules are no rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from novacron import MachineSpec, MigrationPlan, MoveEstimate, NodeFacts, OperationRequest, Refusal
from novacron_compliance_local import (
    LocalSettings,
    Rule,
    novacron_check_migration,
    novacron_check_operation,
)


def node(*rules: Rule) -> NodeFacts:
    settings = {"compliance.local": LocalSettings(refuse=list(rules))}
    return NodeFacts(name="alpha", state_dir=Path("/nonexistent"), settings=settings)


def request(
    kind: str = "migrate", machine: str = "db-1", subject: str = "root"
) -> OperationRequest:
    return OperationRequest(kind=kind, machine=machine, subject=subject)


def plan(machine: str = "db-1", target: str = "site-b", mode: str = "internet") -> MigrationPlan:
    return MigrationPlan(
        machine=MachineSpec(name=machine, driver="wasm", memory_bytes=1),
        source="alpha",
        target=target,
        mode=mode,
        providers={},
        max_downtime_ms=300,
        rate_bytes_per_s=None,
        estimate=MoveEstimate(),
        round_trip_ms=None,
    )


STAY = Rule(kind="migrate", machine="db-*", target="site-b", reason="data stays at site A")


def test_a_migration_to_a_forbidden_target_is_refused_with_the_rules_reason() -> None:
    assert novacron_check_migration(plan(), node(STAY)) == Refusal(
        reason="migration of 'db-1' to 'site-b' is not allowed: data stays at site A",
        hint="a rule of [[compliance.local.refuse]] says so; who keeps it can change it",
    )


@pytest.mark.parametrize("allowed", [plan("web-1"), plan(target="site-c"), plan("DB-1")])
def test_a_migration_that_differs_in_one_pattern_is_let_through(allowed: MigrationPlan) -> None:
    assert novacron_check_migration(allowed, node(STAY)) is None


def test_a_rule_with_a_target_waits_for_the_plan_and_touches_nothing_else() -> None:
    for kind in ("migrate", "create", "delete"):
        assert novacron_check_operation(request(kind), node(STAY)) is None


def test_an_operation_is_refused_by_kind_machine_and_subject() -> None:
    rule = Rule(kind="delete", subject="ci-*", reason="robots delete nothing", hint="ask ops")
    refused = novacron_check_operation(request("delete", subject="ci-7"), node(rule))
    assert refused == Refusal(
        reason="delete of 'db-1' is not allowed: robots delete nothing", hint="ask ops"
    )
    assert novacron_check_operation(request("delete"), node(rule)) is None
    assert novacron_check_operation(request("stop", subject="ci-7"), node(rule)) is None
    assert novacron_check_migration(plan(), node(rule)) is None


def test_a_rule_against_all_migrations_refuses_the_operation_and_the_plan() -> None:
    rule = Rule(kind="migrate", reason="change freeze")
    assert novacron_check_operation(request(), node(rule)) is not None
    assert novacron_check_operation(request("start"), node(rule)) is None
    assert novacron_check_migration(plan(), node(rule)) is not None


def test_a_mode_can_be_refused() -> None:
    rule = Rule(kind="*", mode="internet", reason="not over the internet")
    assert novacron_check_migration(plan(), node(rule)) is not None
    assert novacron_check_migration(plan(mode="datacenter"), node(rule)) is None


def test_the_first_rule_that_matches_is_the_one_that_is_named() -> None:
    rules = (Rule(reason="first"), Rule(reason="second"))
    refused = novacron_check_operation(request(), node(*rules))
    assert refused is not None
    assert refused.reason.endswith("first")


def test_without_the_section_nothing_is_refused_and_foreign_settings_refuse_by_raising() -> None:
    bare = NodeFacts(name="alpha", state_dir=Path("/nonexistent"))
    assert novacron_check_operation(request(), bare) is None
    assert novacron_check_migration(plan(), bare) is None
    wrong = NodeFacts(
        name="alpha", state_dir=Path("/nonexistent"), settings={"compliance.local": {"refuse": []}}
    )
    with pytest.raises(TypeError, match="LocalSettings"):
        novacron_check_operation(request(), wrong)


@pytest.mark.parametrize(
    "rule",
    [
        {"reason": ""},
        {"reason": "x", "machine": ""},
        {"reason": "x", "kind": "delete", "target": "site-b"},
        {"reason": "x", "kind": "delete", "mode": "internet"},
        {"reason": "x", "subject": "ci", "target": "site-b"},
        {"reason": "x", "machine": 3},
    ],
)
def test_a_rule_that_could_never_match_is_refused_when_it_is_read(rule: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Rule(**rule)
