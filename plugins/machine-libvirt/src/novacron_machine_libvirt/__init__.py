"""libvirt domains, moved live between the unmodified libvirtd's of two nodes.

A move is a relay: each node takes the steps of libvirt's own migration at its own libvirtd, whose
QEMU writes its state into a unix socket of the node, or reads it there. No libvirtd is connected to
another one, and the source's keeps the domain until the hand-over has committed.
"""

from __future__ import annotations

from collections.abc import Sequence

from novacron import Finding, MachineDriver, NotFound, hookimpl

from novacron_machine_libvirt._libvirt import library_version
from novacron_machine_libvirt._machine import LibvirtDriver, LibvirtMachine
from novacron_machine_libvirt._settings import MachineSettings, Settings

NOVACRON_API = 1

__all__ = ["NOVACRON_API", "LibvirtDriver", "LibvirtMachine", "MachineSettings", "Settings"]


@hookimpl
def novacron_register_machine() -> Sequence[type[MachineDriver]]:
    return [LibvirtDriver]


@hookimpl
def novacron_register_findings() -> Sequence[Finding]:
    """Whether libvirt is on this host; whether its daemon answers, a node's log tells."""
    try:
        number = library_version()
    except NotFound as error:
        return [Finding(subject="libvirt", status="missing", detail=error.message, hint=error.hint)]
    version = f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
    return [Finding(subject="libvirt", status="ok", detail=f"libvirt.so {version}")]
