"""Shutting out: within an operator's limits, durable, shown, lifted, and felt at the hooks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import novacron_security_threats as plugin
import pytest
from click.testing import CliRunner
from novacron import (
    Channel,
    ConfigError,
    Identity,
    NodeFacts,
    NotFound,
    OperationEvent,
    OperationRequest,
    PluginManager,
    PluginSource,
    ShellState,
    hookimpl,
)
from novacron_security_threats import Alert, Attempt, Guard, Proof, ThreatsSettings
from novacron_security_threats._commands import threats
from novacron_security_threats._quarantine import Register, may_act, utc_now

CHANNEL = Channel(protocol="TLSv1.3", cipher="c", key_exchange="k")
ALERT = Alert(
    detector="brute-force", identity="eve", origin="", score=1.2, reasons=("7 guesses",), at_s=1.0
)
ACTING = ThreatsSettings(act=["brute-force", "token-theft"], most=1)


def peer(name: str, fingerprint: str = "00") -> Identity:
    return Identity(node=name, trust_domain="lab", fingerprint=fingerprint)


def request(subject: str, kind: str = "stop", machine: str = "vm") -> OperationRequest:
    return OperationRequest(kind=kind, machine=machine, subject=subject)


@attrs.define
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard(tmp_path: Path, clock: Clock) -> Iterator[Guard]:
    facts = NodeFacts(name="alpha", state_dir=tmp_path, settings={"threats": ACTING})
    guard = Guard(node=facts, clock=clock)
    yield guard
    guard.close()


@pytest.mark.parametrize(
    ("alert", "settings", "wanted"),
    [
        ({}, {}, ""),
        ({"identity": ""}, {}, "only an origin is known"),
        ({"detector": "exfiltration"}, {}, "act does not name exfiltration"),
        ({}, {"act_score": 1.5}, "below act_score 1.5"),
        ({}, {"protect": ["e*"]}, "protect names it"),
        ({}, {"most": 0}, "most is so many"),
        ({"identity": "local:root"}, {}, "protect names it"),
    ],
)
def test_an_alert_acts_within_the_operators_limits(
    alert: dict[str, Any], settings: dict[str, Any], wanted: str
) -> None:
    held_back = may_act(attrs.evolve(ALERT, **alert), attrs.evolve(ACTING, **settings), [])
    assert (held_back == "") if not wanted else wanted in held_back


def test_nothing_acts_by_itself_unless_an_operator_says_so() -> None:
    assert "act does not name" in may_act(ALERT, ThreatsSettings(), [])


def test_guesses_shut_their_identity_out_and_only_so_many_identities(
    guard: Guard, tmp_path: Path
) -> None:
    for name in ("eve", "mallory"):
        for _ in range(7):
            guard.observe(Attempt(identity=name, accepted=False))
    guard.settle()
    refusal = guard.operation(request("eve"))
    assert refusal is not None
    assert "'eve' is in quarantine until" in refusal.reason
    assert "7 refused attempts" in refusal.reason
    assert guard.operation(request("mallory")) is None
    told = Register(tmp_path).alerts()
    assert [(one.identity, one.quarantined) for one in told] == [("eve", True), ("mallory", False)]


def test_a_stolen_certificate_is_refused_with_the_stream_that_shows_it(guard: Guard) -> None:
    day = 86400.0
    clock = guard.clock
    assert isinstance(clock, Clock)
    assert guard.peer(peer("beta", "aaaa")) is None
    clock.now = day
    assert guard.peer(peer("beta", "bbbb")) is None
    clock.now = day + 3600
    refusal = guard.peer(peer("beta", "aaaa"))
    assert refusal is not None
    assert "used again" in refusal.reason
    assert guard.peer(peer("gamma")) is None


def test_a_quarantine_outlives_the_process_and_ends_by_itself(tmp_path: Path) -> None:
    now = utc_now()
    Register(tmp_path).quarantine("eve", by="operator", reason="x", now=now, hold_s=60.0)
    register = Register(tmp_path)
    assert register.find("eve", now) is not None
    assert register.find("eve", now + timedelta(seconds=61)) is None
    assert register.quarantined(now + timedelta(seconds=61)) == []


def test_the_same_suspicion_within_a_minute_is_counted_and_not_told_again(tmp_path: Path) -> None:
    register, now = Register(tmp_path), utc_now()
    for n in range(5):
        register.record(ALERT, now + timedelta(seconds=30 * n))
    register.record(ALERT, now + timedelta(hours=1))
    register.record(attrs.evolve(ALERT, identity="mallory"), now + timedelta(hours=1))
    told = [(one.number, one.identity, one.times) for one in register.alerts()]
    assert told == [(1, "eve", 5), (2, "eve", 1), (3, "mallory", 1)]


def test_only_the_newest_alerts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novacron_security_threats._quarantine.ALERTS_KEPT", 3)
    register, now = Register(tmp_path), utc_now()
    for n in range(5):
        register.record(attrs.evolve(ALERT, identity=f"eve{n}"), now)
    assert [one.number for one in register.alerts()] == [3, 4, 5]
    with pytest.raises(NotFound):
        register.alert(1)


def test_a_damaged_file_refuses_rather_than_forgets(guard: Guard, tmp_path: Path) -> None:
    folder = tmp_path / "security-threats"
    folder.mkdir()
    (folder / "quarantine.json").write_text("[]")
    with pytest.raises(ConfigError, match="damaged"):
        guard.operation(request("ann"))


# The kernel's hooks.


class Operations:
    """What the guard asks of a node's operations."""

    def __init__(self) -> None:
        self.begun: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        if name not in self.begun:
            raise NotFound(name)
        return self.begun[name]

    def list(self) -> list[Any]:
        return list(self.begun.values())


@attrs.define
class OneNode:
    facts: NodeFacts
    manager: PluginManager
    operations: Operations = attrs.field(factory=Operations)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[OneNode]:
    source = PluginSource(name="security-threats", distribution="here", version="0", plugin=plugin)
    manager = PluginManager.load(sources=[source], strict=True)
    facts = NodeFacts(name="alpha", state_dir=tmp_path, settings={"threats": ACTING})
    node = OneNode(facts, manager)
    manager.notify("novacron_on_node_start", node=node)
    yield node
    manager.notify("novacron_on_node_stop", node=node)


def refused(node: OneNode, **about: Any) -> bool:
    if "peer" in about:
        return bool(node.manager.check("novacron_check_peer", channel=CHANNEL, **about))
    return bool(node.manager.check("novacron_check_operation", node=node.facts, **about))


def test_who_is_in_quarantine_gets_neither_streams_nor_operations_until_released(
    node: OneNode, tmp_path: Path
) -> None:
    assert not refused(node, peer=peer("beta"))
    assert not refused(node, request=request("beta"))
    register = Register(tmp_path)
    register.quarantine("beta", by="operator", reason="found on a list", now=utc_now(), hold_s=None)
    assert refused(node, peer=peer("beta"))
    assert refused(node, request=request("beta"))
    assert not refused(node, peer=peer("gamma"))
    register.release("beta", utc_now())
    assert not refused(node, peer=peer("beta"))
    assert not refused(node, request=request("beta"))


def test_requests_that_somebody_refuses_are_failed_attempts_and_granted_ones_are_none(
    node: OneNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novacron_security_threats._guard.REFUSED_AFTER_S", 0.0)
    for n in range(30):
        granted = request("ann", machine=f"vm{n % 3}")
        node.operations.begun[f"op{n}"] = attrs.make_class("Op", ["request"])(granted)
        assert not refused(node, request=granted)
    outcomes = [refused(node, request=request("eve")) for _ in range(12)]
    (guard,) = plugin._guards.values()
    guard.settle()
    assert refused(node, request=request("eve"))
    assert not outcomes[0]
    assert not refused(node, request=request("ann"))


def test_breaches_of_protocol_and_bytes_of_an_operation_are_observed(node: OneNode) -> None:
    (guard,) = plugin._guards.values()
    asked = request("ann", "migrate")
    asked = attrs.evolve(asked, parameters={"target": "beta"})
    node.operations.begun["op1"] = attrs.make_class("Op", ["request"])(asked)
    told: list[tuple[str, dict[str, Any]]] = [
        ("progress", {"wire_bytes": 10}),
        ("progress", {"wire_bytes": 25}),
        ("progress", {"phase": "copy"}),
        ("state", {"error": {"code": "peer-protocol", "message": "a frame too long"}}),
    ]
    for number, (kind, data) in enumerate(told):
        event = OperationEvent(sequence=number, operation="op1", kind=kind, data=data)
        node.manager.notify("novacron_on_operation_event", event=event, node=node.facts)
    assert guard._watch._identities.get("ann").volume.bytes == 25
    assert guard._watch._faults.get("beta").count == 1


def test_on_threat_tells_others(tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []

    class Listener:
        NOVACRON_API = 1

        @staticmethod
        @hookimpl
        def novacron_on_threat(alert: Alert, quarantined: bool) -> None:
            told.append((alert.detector, quarantined))

    sources = [
        PluginSource(name="listener", distribution="x", version="0", plugin=Listener()),
        PluginSource(name="security-threats", distribution="y", version="0", plugin=plugin),
    ]
    manager = PluginManager.load(sources=sources, strict=True)
    guard = Guard(node=NodeFacts(name="alpha", state_dir=tmp_path), manager=manager)
    for fingerprint in "abc":
        guard.observe(Proof(identity="beta", fingerprint=fingerprint))
    guard.close()
    assert told == [("token-theft", False)]


def test_settings_that_name_no_detector_are_refused() -> None:
    with pytest.raises(ConfigError, match="telepathy"):
        ThreatsSettings(act=["telepathy"])
    with pytest.raises(ConfigError, match="out of bounds"):
        ThreatsSettings(hold_s=0.0)


# Commands.


def run(tmp_path: Path, *words: str, as_json: bool = True) -> Any:
    config = tmp_path / "novacron.toml"
    config.write_text(f'[node]\nstate_dir = "{tmp_path}"\n[threats.watch]\ncertainty = 12.0\n')
    state = ShellState(config_path=config, json=as_json)
    return CliRunner().invoke(threats, words, obj=state)


@pytest.mark.slow
def test_quarantine_list_show_and_release(tmp_path: Path) -> None:
    Register(tmp_path).record(ALERT, utc_now())
    done = run(tmp_path, "quarantine", "eve", "--for", "2h", "--reason", "a list")
    assert json.loads(done.output)["reason"] == "a list"
    listed = json.loads(run(tmp_path, "list").output)
    assert [one["identity"] for one in listed["quarantined"]] == ["eve"]
    assert listed["alerts"][0]["reasons"] == ["7 guesses"]
    assert json.loads(run(tmp_path, "show", "1").output)["detector"] == "brute-force"
    assert "brute-force" in run(tmp_path, "list", as_json=False).output
    assert run(tmp_path, "release", "eve").exit_code == 0
    assert isinstance(run(tmp_path, "release", "eve").exception, NotFound)
    assert isinstance(run(tmp_path, "show", "9").exception, NotFound)
    assert isinstance(run(tmp_path, "quarantine", "eve", "--for", "ever").exception, ConfigError)


@pytest.mark.slow
def test_train_and_score(tmp_path: Path) -> None:
    lines = ["kind,size,rate,label"]
    lines += [f"web,{100 + n % 50},0.{n % 3},normal" for n in range(200)]
    lines += [f"web,{9000 + n},0.9,flood" for n in range(40)]
    (tmp_path / "records.csv").write_text("\n".join(lines) + "\n")
    done = run(tmp_path, "train", str(tmp_path / "records.csv"))
    assert json.loads(done.output)["ordinary"] == 200
    done = run(tmp_path, "score", str(tmp_path / "records.csv"), "--most", "3")
    found = json.loads(done.output)
    assert 40 <= found["threats"] <= 45
    assert len(found["worst"]) == 3
    assert found["worst"][0]["reasons"]
    assert isinstance(run(tmp_path, "train", str(tmp_path / "none.csv")).exception, NotFound)
