"""QEMU virtual machines: made, found again and moved live, with stock QEMU by QMP.

A move is a relay: the source's QEMU writes its own migration stream into a unix socket, here it
becomes batches, and at the destination a QEMU that was started paused reads the very same stream.
"""

from __future__ import annotations

from collections.abc import Sequence

from novacron import Finding, MachineDriver, NovacronError, hookimpl

from novacron_machine_qemu._host import OLDEST, Host, unsound_dirty_tracking
from novacron_machine_qemu._machine import QemuDriver, QemuMachine
from novacron_machine_qemu._settings import Disk, MachineSettings, Settings
from novacron_machine_qemu.guest import GuestOptions, build_guest, find_busybox, find_kernel

NOVACRON_API = 1

__all__ = [
    "NOVACRON_API",
    "Disk",
    "GuestOptions",
    "MachineSettings",
    "QemuDriver",
    "QemuMachine",
    "Settings",
    "build_guest",
]


@hookimpl
def novacron_register_machine() -> Sequence[type[MachineDriver]]:
    return [QemuDriver]


@hookimpl
def novacron_register_findings() -> Sequence[Finding]:
    """QEMU and its version, whether KVM works, and whether there is a guest for the demo."""
    host = Host(Settings().binary)
    return [*_about_qemu(host), _about_guest()]


def _about_qemu(host: Host) -> list[Finding]:
    try:
        detail, version = f"{host.version_text} ({host.binary})", host.version
    except NovacronError as error:
        return [Finding(subject="qemu", status="missing", detail=error.message, hint=error.hint)]
    if version[:2] < OLDEST:
        found = Finding(
            subject="qemu",
            status="broken",
            detail=f"{detail} is too old",
            hint=f"install QEMU {'.'.join(map(str, OLDEST))} or newer",
        )
        return [found]
    kvm = host.kvm()
    findings = [Finding(subject="qemu", status="ok", detail=detail)]
    if kvm.works:
        return [*findings, Finding(subject="kvm", status="ok", detail=kvm.reason)]
    unsound = unsound_dirty_tracking(version, "tcg")
    detail = f"{kvm.reason}; machines run emulated (tcg), which is slow"
    findings.append(Finding(subject="kvm", status="note", detail=detail, hint=kvm.hint))
    if unsound:
        findings.append(
            Finding(
                subject="qemu under emulation",
                status="broken",
                detail=unsound,
                hint="run scripts/debian-packages, or install a newer QEMU",
            )
        )
    return findings


def _about_guest() -> Finding:
    try:
        kernel, busybox = find_kernel(), find_busybox()
    except NovacronError as error:
        return Finding(
            subject="qemu guest for the demo",
            status="missing",
            detail=error.message,
            hint=error.hint,
        )
    return Finding(
        subject="qemu guest for the demo", status="ok", detail=f"{kernel} with {busybox}"
    )
