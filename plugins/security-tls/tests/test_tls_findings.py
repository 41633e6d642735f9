"""What `novacron doctor` says of TLS, and what a command that needs none of it must not import."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from novacron import Finding, ShellState
from novacron_security_tls import Authority, novacron_register_findings


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOVACRON_NODE__STATE_DIR", str(tmp_path / "alpha"))
    monkeypatch.delenv("NOVACRON_NODE__NAME", raising=False)
    return tmp_path / "alpha"


def found(subject: str) -> Finding:
    (one,) = (each for each in novacron_register_findings() if each.subject == subject)
    return one


def test_the_library_and_its_key_exchange_are_named() -> None:
    finding = found("tls")
    assert finding.status == "ok"
    assert "OpenSSL" in finding.detail
    assert "X25519MLKEM768" in finding.detail


def test_a_node_that_has_not_joined_is_told_how(state_dir: Path) -> None:
    finding = found("identity")
    assert finding.status == "missing"
    assert "novacron trust join" in finding.hint


def test_an_identity_is_shown_with_its_end(state_dir: Path, tmp_path: Path) -> None:
    issued = Authority.create(tmp_path / "ca", domain="lab").issue("alpha", state_dir)
    finding = found("identity")
    assert (finding.status, finding.hint) == ("ok", "")
    assert finding.detail == f"alpha of lab until {issued.not_after:%Y-%m-%d %H:%M} UTC"


def test_an_identity_that_ends_soon_comes_with_the_cure(state_dir: Path, tmp_path: Path) -> None:
    earlier = datetime.now(UTC) - timedelta(hours=20)
    authority = Authority.create(tmp_path / "ca", clock=lambda: earlier)
    authority.issue("alpha", state_dir, life=timedelta(hours=24))
    finding = found("identity")
    assert finding.status == "note"
    assert "novacron trust issue alpha" in finding.hint


def test_an_identity_of_another_node_is_broken(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Authority.create(tmp_path / "ca").issue("alpha", state_dir)
    monkeypatch.setenv("NOVACRON_NODE__NAME", "beta")
    finding = found("identity")
    assert finding.status == "broken"
    assert "it names alpha" in finding.detail


def test_the_state_folder_is_the_one_that_the_configuration_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOVACRON_NODE__STATE_DIR", raising=False)
    monkeypatch.delenv("NOVACRON_NODE__NAME", raising=False)
    Authority.create(tmp_path / "ca").issue("gamma", tmp_path / "elsewhere")
    file = tmp_path / "novacron.toml"
    file.write_text(f'[node]\nname = "gamma"\nstate_dir = "{tmp_path / "elsewhere"}"\n')
    with click.Context(click.Command("doctor"), obj=ShellState(config_path=file)):
        finding = found("identity")
    assert (finding.status, finding.detail.split()[0]) == ("ok", "gamma")


@pytest.mark.parametrize("damage", [b"", b"no certificate"])
def test_a_damaged_identity_is_broken_and_no_crash(
    state_dir: Path, tmp_path: Path, damage: bytes
) -> None:
    Authority.create(tmp_path / "ca").issue("alpha", state_dir)
    (state_dir / "security-tls" / "cert.pem").write_bytes(damage)
    assert found("identity").status == "broken"


def test_offering_the_provider_and_its_commands_imports_no_cryptography() -> None:
    code = (
        "import sys, novacron_security_tls as tls;"
        "tls.novacron_register_security(); tls.novacron_register_commands(); print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"cryptography", "OpenSSL"} & set(ran.stdout.split()) == set()
