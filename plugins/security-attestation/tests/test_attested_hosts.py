"""Evidence as a condition: machines that move to attested hosts only, peers that must be attested,
and the commands that admit evidence."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import novacron_security_attestation as plugin
import pytest
from attrs import frozen
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding
from novacron import (
    Channel,
    Identity,
    MachineSpec,
    MigrationPlan,
    MoveEstimate,
    NodeFacts,
    NotFound,
    PluginManager,
    PluginSource,
    Refused,
    ShellState,
)
from novacron_security_attestation import AttestationSettings, Collateral
from novacron_security_attestation._admitted import Admitted
from novacron_security_attestation._commands import attestation
from novacron_security_attestation._findings import findings

NONCE = b"n" * 64


@frozen
class NodeState:
    state_dir: Path


@frozen
class NodeConfig:
    node: NodeState
    sections: dict[str, Any]


def plan(machine: str = "payroll-1", tenant: str = "", target: str = "beta") -> MigrationPlan:
    return MigrationPlan(
        machine=MachineSpec(
            name=machine, driver="qemu", memory_bytes=1 << 20, settings={}, tenant=tenant
        ),
        source="alpha",
        target=target,
        mode="internet",
        providers={},
        max_downtime_ms=100,
        rate_bytes_per_s=None,
        estimate=MoveEstimate(bytes=(0, 1, 2), reason="a test"),
        round_trip_ms=None,
    )


@pytest.fixture
def manager() -> PluginManager:
    source = PluginSource(
        name="security-attestation", distribution="here", version="0", plugin=plugin
    )
    return PluginManager.load(sources=[source], strict=True)


def facts(tmp_path: Path, settings: AttestationSettings) -> NodeFacts:
    return NodeFacts(name="alpha", state_dir=tmp_path, settings={"attestation": settings})


def objections(manager: PluginManager, node: NodeFacts, **about: Any) -> list[str]:
    found = manager.check("novacron_check_migration", plan=plan(**about), node=node)
    return [one.refusal.reason for one in found]


def admit(amd: Any, folder: Path, peer: str = "beta", **changes: Any) -> None:
    Admitted(folder).admit(
        peer, amd.report(), amd.collateral(), NONCE, changes.get("now", datetime.now(UTC))
    )


@pytest.fixture
def amd_now(amd: Any, monkeypatch: pytest.MonkeyPatch, now: datetime) -> Any:
    """The makers' certificates hold around a fixed moment: it is that moment now."""
    monkeypatch.setattr("novacron_security_attestation._hooks.utc_now", lambda: now)
    monkeypatch.setattr("novacron_security_attestation._commands.utc_now", lambda: now)
    return amd


def policy(amd: Any, **changes: Any) -> AttestationSettings:
    settings: AttestationSettings = amd.settings(amd.collateral(), **changes)
    return settings


def test_a_machine_that_asks_for_it_moves_to_an_attested_host_only(
    manager: PluginManager, amd_now: Any, now: datetime, tmp_path: Path
) -> None:
    node = facts(tmp_path, policy(amd_now, machines=["payroll-*"], tenants=["bank"]))
    (reason,) = objections(manager, node)
    assert "payroll-1 may move to attested hosts only" in reason
    assert "[peer.not-attested]" in reason
    assert objections(manager, node, machine="web-1") == []
    assert len(objections(manager, node, machine="web-1", tenant="bank")) == 1
    admit(amd_now, tmp_path, now=now)
    assert objections(manager, node) == []
    assert len(objections(manager, node, target="gamma")) == 1


def test_admitted_evidence_counts_only_for_so_long_and_only_while_it_holds(
    manager: PluginManager, amd_now: Any, now: datetime, tmp_path: Path
) -> None:
    settings = policy(amd_now, machines=["*"], max_age_s=3600.0)
    admit(amd_now, tmp_path, now=now - timedelta(hours=2))
    assert "[peer.evidence-old]" in objections(manager, facts(tmp_path, settings))[0]
    admit(amd_now, tmp_path, now=now)
    assert objections(manager, facts(tmp_path, settings)) == []
    stricter = policy(amd_now, machines=["*"], snp_minimum={"snp": 99})
    assert "[snp.tcb-low]" in objections(manager, facts(tmp_path, stricter))[0]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"peer":"beta"}'])
def test_a_damaged_record_refuses(
    manager: PluginManager, amd_now: Any, now: datetime, tmp_path: Path, content: bytes
) -> None:
    admit(amd_now, tmp_path, now=now)
    (tmp_path / "security-attestation" / "beta.json").write_bytes(content)
    node = facts(tmp_path, policy(amd_now, machines=["*"]))
    assert "[peer.record-damaged]" in objections(manager, node)[0]


def test_a_record_does_not_serve_another_peer(
    manager: PluginManager, amd_now: Any, now: datetime, tmp_path: Path
) -> None:
    admit(amd_now, tmp_path, now=now)
    folder = tmp_path / "security-attestation"
    (folder / "gamma.json").write_bytes((folder / "beta.json").read_bytes())
    node = facts(tmp_path, policy(amd_now, machines=["*"]))
    assert "[peer.record-damaged]" in objections(manager, node, target="gamma")[0]


def test_a_peer_that_must_be_attested_gets_no_stream_without(
    manager: PluginManager,
    amd_now: Any,
    now: datetime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stub:
        facts = None

    node = Stub()
    node.facts = facts(tmp_path, policy(amd_now, peers=["b*"]))  # type: ignore[assignment]
    channel = Channel(protocol="TLSv1.3", cipher="c", key_exchange="k")

    def refused(name: str) -> bool:
        peer = Identity(node=name, trust_domain="lab", fingerprint="00")
        return bool(manager.check("novacron_check_peer", peer=peer, channel=channel))

    assert not refused("beta")
    manager.notify("novacron_on_node_start", node=node)
    try:
        assert (refused("beta"), refused("gamma")) == (True, False)
        admit(amd_now, tmp_path, now=now)
        assert not refused("beta")
    finally:
        manager.notify("novacron_on_node_stop", node=node)
    Admitted(tmp_path).forget("beta")
    assert not refused("beta")


@pytest.mark.slow
def test_evidence_that_is_bound_to_a_certificate_counts_with_that_one_alone(
    manager: PluginManager, amd_now: Any, files: Path
) -> None:
    fingerprint = "ab" * 32
    asked = json.loads(run(files, amd_now, "challenge", "--fingerprint", fingerprint).output)
    (files / "report.bin").write_bytes(amd_now.report(nonce=bytes.fromhex(asked["report_data"])))
    words: tuple[str, ...] = ("admit", "beta", str(files / "report.bin"))
    words += ("--nonce", asked["nonce"])
    words += ("--collateral", str(files / "collateral"), "--fingerprint")
    other = run(files, amd_now, *words, "cd" * 32)
    assert other.exception.facts["reasons"] == ["snp.nonce"]
    assert run(files, amd_now, *words, fingerprint.upper()).exit_code == 0

    def told(proved: str) -> list[str]:
        settings, now = policy(amd_now), amd_now.root().not_valid_before_utc + timedelta(days=30)
        verdict = Admitted(files).judge("beta", settings, now, proved)
        return [one.code for one in verdict.reasons]

    assert told(fingerprint) == []
    assert told("") == []
    assert told("cd" * 32) == ["peer.other-certificate"]


def test_a_policy_that_is_not_one_refuses(manager: PluginManager, tmp_path: Path) -> None:
    node = NodeFacts(name="alpha", state_dir=tmp_path, settings={"attestation": "none"})
    assert "TypeError" in objections(manager, node)[0]


# Commands.


def run(tmp_path: Path, amd: Any, *arguments: str, as_json: bool = True) -> Any:
    settings = policy(amd)
    config = tmp_path / "novacron.toml"
    config.write_text(
        f'[node]\nstate_dir = "{tmp_path}"\n[attestation]\nroots = ["{settings.roots[0]}"]\n'
    )
    state = ShellState(config_path=config, json=as_json)
    return CliRunner().invoke(attestation, arguments, obj=state, catch_exceptions=True)


@pytest.fixture
def files(amd: Any, tmp_path: Path) -> Path:
    collateral: Collateral = amd.collateral()
    (tmp_path / "collateral").mkdir()
    for number, one in enumerate(collateral.certificates):
        path = tmp_path / "collateral" / f"{number}.pem"
        path.write_bytes(one.public_bytes(Encoding.PEM))
    (tmp_path / "report.bin").write_bytes(amd.report())
    return tmp_path


@pytest.mark.slow
def test_verify_prints_a_verdict_and_its_exit_code_says_it(
    amd_now: Any, files: Path, now: datetime
) -> None:
    report, collateral = str(files / "report.bin"), str(files / "collateral")
    words = ("verify", report, "--collateral", collateral, "--at", now.isoformat())
    done = run(files, amd_now, *words, "--nonce", NONCE.hex())
    assert (done.exit_code, json.loads(done.output)["trusted"]) == (0, True)
    done = run(files, amd_now, *words, "--nonce", "00")
    assert done.exit_code == Refused.exit_code
    assert json.loads(done.output)["reasons"][0]["code"] == "snp.nonce"
    told = run(files, amd_now, *words, as_json=False)
    assert "trusted" in told.output


@pytest.mark.slow
def test_admit_list_and_forget(amd_now: Any, files: Path) -> None:
    report, collateral = str(files / "report.bin"), str(files / "collateral")
    done = run(files, amd_now, "admit", "beta", report, "--nonce", "00", "--collateral", collateral)
    assert isinstance(done.exception, Refused)
    assert done.exception.facts["reasons"] == ["snp.nonce"]
    assert json.loads(run(files, amd_now, "list").output) == {}
    words = ("admit", "beta", report, "--nonce", NONCE.hex(), "--collateral", collateral)
    assert run(files, amd_now, *words).exit_code == 0
    assert json.loads(run(files, amd_now, "list").output)["beta"]["trusted"] is True
    assert run(files, amd_now, "forget", "beta").exit_code == 0
    assert isinstance(run(files, amd_now, "forget", "beta").exception, NotFound)


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "none.bin"),
        ("verify", "report.bin", "--nonce", "xyz"),
        ("verify", "report.bin", "--at", "soon"),
        ("challenge", "--fingerprint", "none"),
        ("verify", "report.bin", "--collateral", "none"),
        ("verify", "report.bin", "--collateral", "report.bin"),
        ("admit", "../beta", "report.bin", "--nonce", NONCE.hex(), "--collateral", "collateral"),
    ],
)
def test_wrong_arguments_are_refused_with_the_next_step(
    amd_now: Any, files: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(files)
    done = run(files, amd_now, *words)
    assert getattr(done.exception, "hint", ""), done.output


def test_the_doctor_says_whether_this_system_gives_evidence_and_which_peers_hold(
    amd_now: Any, now: datetime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novacron_security_attestation._findings.utc_now", lambda: now)
    (found,) = findings(((str(tmp_path), "reports"),))
    assert (found.status, found.detail) == ("ok", f"{tmp_path}: reports")
    admit(amd_now, tmp_path, "beta", now=now)
    admit(amd_now, tmp_path, "gamma", now=now - timedelta(days=9))
    state = ShellState()
    config = NodeConfig(NodeState(tmp_path), {"attestation": policy(amd_now)})
    state.__dict__["config"] = config
    with click.Context(attestation, obj=state):
        told = [(one.subject, one.status) for one in findings(())]
    assert told == [
        ("confidential guest", "note"),
        ("attested beta", "ok"),
        ("attested gamma", "broken"),
    ]


def test_the_group_offers_its_commands(manager: PluginManager) -> None:
    (answer,) = manager.call("novacron_register_commands")
    (group,) = answer[1]
    assert isinstance(group, click.Group)
    assert set(group.commands) == {"admit", "challenge", "forget", "list", "verify"}
