"""Each hook is asked, and what it answers is heeded. One test per hook, named after it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import frozen
from novacron import (
    API_VERSION,
    Channel,
    ConfigError,
    Identity,
    MachineSpec,
    MigrationPlan,
    MoveContext,
    MoveEstimate,
    MoveFacts,
    NodeFacts,
    OperationEvent,
    OperationRequest,
    PluginManager,
    PluginSource,
    Refusal,
    hookimpl,
)
from novacron import config as configuration
from novacron.hookspecs import DOMAINS, SPEC_MODULES

FACTS = NodeFacts(name="alpha", state_dir=Path("/nowhere"))
REQUEST = OperationRequest(kind="start", machine="vm", subject="local:me")


def load(**hooks: Any) -> PluginManager:
    plugin = SimpleNamespace(NOVACRON_API=API_VERSION, **hooks)
    found = PluginSource(name="test", distribution="test", version="1", plugin=plugin)
    return PluginManager.load(sources=[found], strict=True)


@frozen
class Settings:
    depth: int = 3


class Provider:
    name = "mine"
    Settings = Settings


def provider_hook(kind: str) -> Any:
    def answer() -> Any:
        return (Provider,)

    return hookimpl(answer, specname=f"novacron_register_{kind}")


def assert_offered(kind: str) -> None:
    manager = load(answer=provider_hook(kind))
    assert manager.providers(kind) == {"mine": Provider}
    assert manager.offered_by(kind, "mine") == "test"
    assert manager.settings_classes() == {f"{kind}.mine": Settings}
    tables = {kind: {"mine": {"depth": 5}}}
    assert configuration.check(tables, manager).sections[f"{kind}.mine"] == Settings(5)


def test_register_machine_offers_drivers_by_name() -> None:
    assert_offered("machine")


def test_register_compression_offers_codecs_by_name() -> None:
    assert_offered("compression")


def test_register_transport_offers_transports_by_name() -> None:
    assert_offered("transport")


def test_register_security_offers_protection_by_name() -> None:
    assert_offered("security")


def test_register_consensus_offers_registers_by_name() -> None:
    assert_offered("consensus")


def test_register_placement_offers_choosers_by_name() -> None:
    assert_offered("placement")


def test_register_compliance_offers_logs_by_name() -> None:
    assert_offered("compliance")


def test_register_service_offers_services_by_name() -> None:
    assert_offered("service")


def test_register_settings_adds_a_checked_section() -> None:
    @hookimpl
    def novacron_register_settings() -> Any:
        return {"policy": Settings}

    manager = load(novacron_register_settings=novacron_register_settings)
    assert configuration.check({"policy": {"depth": 1}}, manager).sections["policy"] == Settings(1)
    with pytest.raises(ConfigError, match="dept"):
        configuration.check({"policy": {"dept": 1}}, manager)


def test_register_profiles_brings_a_profile_that_is_in_use_when_called_standard() -> None:
    @hookimpl
    def novacron_register_profiles() -> Any:
        return {"standard": {"settings": {"node": {"mode": "hybrid"}}}}

    config = configuration.check({}, load(novacron_register_profiles=novacron_register_profiles))
    assert (config.profile, config.node.mode) == ("standard", "hybrid")


def test_register_commands_answers_are_kept_with_the_plugin_that_gave_them() -> None:
    @hookimpl
    def novacron_register_commands() -> Any:
        return ("a command",)

    manager = load(novacron_register_commands=novacron_register_commands)
    assert manager.call("novacron_register_commands") == [("test", ("a command",), None)]


def test_register_findings_that_raise_are_told_with_the_plugins_name() -> None:
    @hookimpl
    def novacron_register_findings() -> Any:
        raise RuntimeError("broken probe")

    ((plugin, answer, error),) = load(novacron_register_findings=novacron_register_findings).call(
        "novacron_register_findings"
    )
    assert (plugin, answer, str(error)) == ("test", None, "broken probe")


def objections(hook: str, answer: Any, **arguments: Any) -> list[tuple[str, str]]:
    if isinstance(answer, Exception):
        failure = answer

        def implementation() -> Any:
            raise failure
    else:

        def implementation() -> Any:
            return answer

    manager = load(answer=hookimpl(implementation, specname=hook))
    return [(o.plugin, o.refusal.reason) for o in manager.check(hook, **arguments)]


CHECKS: dict[str, dict[str, Any]] = {
    "novacron_check_operation": {"request": REQUEST, "node": FACTS},
    "novacron_check_migration": {
        "plan": MigrationPlan(
            machine=MachineSpec(name="vm", driver="wasm", memory_bytes=1),
            source="a",
            target="b",
            mode="internet",
            providers={},
            max_downtime_ms=1,
            rate_bytes_per_s=None,
            estimate=MoveEstimate(),
            round_trip_ms=None,
        ),
        "node": FACTS,
    },
    "novacron_check_peer": {
        "peer": Identity(node="b", trust_domain="t", fingerprint="f"),
        "channel": Channel(protocol="p", cipher="c", key_exchange="k"),
    },
}


def assert_asked_by_everyone_and_an_exception_refuses(hook: str) -> None:
    asked = CHECKS[hook]
    assert objections(hook, None, **asked) == []
    assert objections(hook, Refusal(reason="no"), **asked) == [("test", "no")]
    ((plugin, reason),) = objections(hook, RuntimeError("oops"), **asked)
    assert plugin == "test"
    assert "oops" in reason


def test_check_operation_refuses_by_answer_and_by_exception() -> None:
    assert_asked_by_everyone_and_an_exception_refuses("novacron_check_operation")


def test_check_migration_refuses_by_answer_and_by_exception() -> None:
    assert_asked_by_everyone_and_an_exception_refuses("novacron_check_migration")


def test_check_peer_refuses_by_answer_and_by_exception() -> None:
    assert_asked_by_everyone_and_an_exception_refuses("novacron_check_peer")


def told(hook: str, caplog: pytest.LogCaptureFixture, **arguments: Any) -> None:
    seen: list[str] = []

    def observe() -> None:
        seen.append(hook)
        raise RuntimeError("an observer's fault")

    manager = load(observe=hookimpl(observe, specname=hook))
    manager.notify(hook, **arguments)
    assert seen == [hook]
    assert "'test'" in caplog.text


def test_on_node_start_observers_cannot_stop_the_node(caplog: pytest.LogCaptureFixture) -> None:
    told("novacron_on_node_start", caplog, node=object())


def test_on_node_stop_observers_cannot_stop_the_end(caplog: pytest.LogCaptureFixture) -> None:
    told("novacron_on_node_stop", caplog, node=object())


def test_on_operation_event_observers_cannot_stop_it(caplog: pytest.LogCaptureFixture) -> None:
    event = OperationEvent(sequence=1, operation="op", kind="phase", data={})
    told("novacron_on_operation_event", caplog, event=event, node=FACTS)


def test_on_session_phase_observers_cannot_stop_it(caplog: pytest.LogCaptureFixture) -> None:
    told(
        "novacron_on_session_phase",
        caplog,
        session="mig-1",
        machine="vm",
        role="source",
        phase="copy",
        node=FACTS,
    )


def test_register_operation_offers_kinds_by_name() -> None:
    assert_offered("operation")


MOVE = MoveFacts(
    machine=MachineSpec(name="vm", driver="wasm", memory_bytes=1),
    target="b",
    mode="internet",
    codec="zstd",
)
CHOICES: dict[str, dict[str, Any]] = {
    "novacron_choose_estimate": {"move": MOVE, "node": FACTS},
    "novacron_choose_rates": {"moves": [], "node": FACTS},
    "novacron_choose_provider": {
        "domain": "compression",
        "chosen": "zstd",
        "available": ["zstd"],
        "move": MoveContext(machine="vm", tenant="", source="a", target="b", mode="internet"),
        "node": FACTS,
    },
}


def assert_the_first_answer_wins(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    def chosen(*answers: Any) -> Any:
        def answering(answer: Any) -> Any:
            def ask() -> Any:
                if isinstance(answer, Exception):
                    raise answer
                return answer

            return hookimpl(ask, specname=hook)

        plugins = [
            SimpleNamespace(NOVACRON_API=API_VERSION, answer=answering(answer))
            for answer in answers
        ]
        sources = [
            PluginSource(name=f"test{number}", distribution="test", version="1", plugin=plugin)
            for number, plugin in enumerate(plugins)
        ]
        return PluginManager.load(sources=sources, strict=True).choose(hook, **CHOICES[hook])

    assert chosen() is None
    assert chosen(None, "this", None) == "this"
    assert chosen(RuntimeError("oops"), "this") == "this"
    assert "'test0'" in caplog.text


def test_choose_estimate_is_answered_by_the_first(caplog: pytest.LogCaptureFixture) -> None:
    assert_the_first_answer_wins("novacron_choose_estimate", caplog)


def test_choose_rates_is_answered_by_the_first(caplog: pytest.LogCaptureFixture) -> None:
    assert_the_first_answer_wins("novacron_choose_rates", caplog)


def test_choose_provider_is_answered_by_the_first(caplog: pytest.LogCaptureFixture) -> None:
    assert_the_first_answer_wins("novacron_choose_provider", caplog)


def test_on_move_sample_observers_cannot_stop_the_move(caplog: pytest.LogCaptureFixture) -> None:
    told("novacron_on_move_sample", caplog, move=MOVE, node=FACTS)


def test_on_move_end_observers_cannot_change_it(caplog: pytest.LogCaptureFixture) -> None:
    told(
        "novacron_on_move_end",
        caplog,
        move=MOVE,
        moved=True,
        reason="",
        downtime_ms=1.0,
        node=FACTS,
    )


def test_every_hook_has_a_test_here_that_is_named_after_it() -> None:
    declared = {
        name.removeprefix("novacron_")
        for module in SPEC_MODULES
        for name in vars(module)
        if name.startswith("novacron_")
    }
    tests = [name.removeprefix("test_") for name in globals() if name.startswith("test_")]
    missing = {hook for hook in declared if not any(name.startswith(hook) for name in tests)}
    assert not missing
    assert {f"register_{domain}" for domain in DOMAINS} <= declared
