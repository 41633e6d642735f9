"""What this host says of itself: asked of the real QEMU."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from novacron import ConfigError, MachineSpec
from novacron_machine_qemu import Settings, novacron_register_findings
from novacron_machine_qemu._command import Builder, read_origin
from novacron_machine_qemu._host import Host
from novacron_machine_qemu._process import Home

pytestmark = pytest.mark.qemu


def builder(host: Host, settings: dict[str, Any], folder: Path) -> Builder:
    spec = MachineSpec(name="m", driver="qemu", memory_bytes=32 << 20, settings=settings)
    return Builder(host, Settings(), spec, Home(folder, ""))


def test_a_machine_type_is_fixed_to_its_version(qemu_host: Host) -> None:
    fixed = qemu_host.machine_type("q35")
    assert fixed.startswith("pc-q35-")
    assert qemu_host.machine_type(fixed) == fixed
    with pytest.raises(ConfigError, match="no machine type 'q36'"):
        qemu_host.machine_type("q36")


def test_emulation_that_nobody_asked_for_is_said_aloud(
    qemu_host: Host,
    guest_settings: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kvm = qemu_host.kvm()
    assert kvm.reason
    caplog.set_level(logging.INFO)
    _, facts = builder(qemu_host, {**guest_settings, "accel": "auto"}, tmp_path).start()
    assert facts.accel == ("kvm" if kvm.works else "tcg")
    if not kvm.works:
        assert facts.accel_reason == kvm.reason
        assert kvm.reason in caplog.text
        with pytest.raises(ConfigError, match="does not work here"):
            builder(qemu_host, {**guest_settings, "accel": "kvm"}, tmp_path).start()


def test_facts_survive_the_wire(
    qemu_host: Host, guest_settings: dict[str, Any], tmp_path: Path
) -> None:
    facts = builder(qemu_host, guest_settings, tmp_path).facts()
    assert read_origin(facts.to_json()) == facts


def test_doctor_says_what_is_there() -> None:
    findings = novacron_register_findings()
    assert [finding.subject for finding in findings][:2] == ["qemu", "kvm"]
    assert {finding.status for finding in findings} <= {"ok", "note", "missing", "broken"}
