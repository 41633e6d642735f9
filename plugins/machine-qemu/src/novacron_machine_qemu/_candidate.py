"""A machine that may come, and the host that it may come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from novacron import ConfigError, MachineSpec, Obstacle

from novacron_machine_qemu._command import Builder, Origin
from novacron_machine_qemu._host import Host
from novacron_machine_qemu._settings import MachineSettings, Settings, resolve
from novacron_machine_qemu._told import Told


@frozen(kw_only=True)
class Candidate:
    """What the target judges by.

    Attributes:
        host, settings: This node's QEMU and its section ``[machine.qemu]``.
        spec, machine: The machine, and its settings as they are typed.
        source, told: What its source says of it, checked.
        builder: Makes its command line here.
        storage: What becomes of its disks: ``copy``, ``shared`` or empty.
        neighbours: Every other machine's own arguments, by its name.
    """

    host: Host
    settings: Settings
    spec: MachineSpec
    machine: MachineSettings
    source: Origin
    told: Told
    builder: Builder
    storage: str
    neighbours: Mapping[str, Sequence[str]]

    def place(self, name: str, path: str) -> Path | Obstacle:
        """Where a file that a setting names would be on this host."""
        try:
            return resolve(path, self.settings, f"machine {self.spec.name}: {name}")
        except ConfigError as error:
            return found("settings.refused", error.message, error.hint, setting=name, path=path)


def found(code: str, what: str, cure: str, *, blocks: bool = True, **facts: Any) -> Obstacle:
    """An obstacle at the target."""
    return Obstacle(code=code, what=what, cure=cure, blocks=blocks, side="target", facts=facts)


def mib(count: int) -> str:
    """Bytes for people."""
    return f"{count / (1 << 20):,.0f} MiB"
