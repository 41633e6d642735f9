"""QEMU's command line, made from a machine's settings, and the facts that go with it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cattrs
from attrs import field, frozen
from blake3 import blake3
from novacron import ConfigError, MachineSpec, Refused

from novacron_machine_qemu._disk_files import NODE, OriginDisk
from novacron_machine_qemu._host import Host, processor_flags, unsound_dirty_tracking
from novacron_machine_qemu._process import Home, option
from novacron_machine_qemu._settings import (
    MIB,
    MachineSettings,
    Settings,
    machine_settings,
    read_arguments_file,
    resolve,
)

log = logging.getLogger("novacron.machine.qemu")


@frozen(kw_only=True)
class Origin:
    """What `Machine.describe` says of a machine, and what a destination must be able to match.

    Attributes:
        driver: Always ``qemu``.
        qemu: Its version.
        machine_type: With its version ("pc-q35-10.0"): what the guest believes to be built of.
        accel: ``kvm`` or ``tcg``; ``auto`` while the machine was not started.
        cpu: QEMU's processor model.
        processor_flags: What the host's processor can do, if the model is the host's own.
        cpus: Virtual processors.
        memory_bytes: The guest's memory.
        files: BLAKE3 of the kernel and the initial RAM disk.
        unshared_disks: Disks that a move leaves behind, or takes along if it is asked to.
        disks: How those look now.
        accel_reason: Why emulation was taken, if that was not asked for.
        warnings: What the operator should know.
    """

    driver: str
    qemu: tuple[int, ...]
    machine_type: str
    accel: str
    cpu: str
    cpus: int
    memory_bytes: int
    processor_flags: tuple[str, ...] = ()
    files: Mapping[str, str] = field(factory=dict)
    unshared_disks: tuple[str, ...] = ()
    disks: tuple[OriginDisk, ...] = ()
    accel_reason: str = ""
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON-like: what a peer reads back is equal to it."""
        made: dict[str, Any] = cattrs.unstructure(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in made.items()}


def read_origin(facts: Mapping[str, Any]) -> Origin:
    """A peer's facts, checked. Raises Refused if they are not a QEMU machine's."""
    if facts.get("driver") != "qemu":
        raise Refused(
            f"what arrives is a machine of the driver {facts.get('driver')!r}, not of qemu",
            hint="give the machine the driver that it had at its source",
        )
    try:
        return cattrs.structure(dict(facts), Origin)
    except (ValueError, TypeError, KeyError, cattrs.BaseValidationError) as error:
        raise Refused(
            "what arrives does not describe itself as a QEMU machine should",
            hint="use the same version of novacron-machine-qemu on both nodes",
        ) from error


class Builder:
    """Makes command lines for one machine. May block: call it in a worker thread."""

    def __init__(self, host: Host, settings: Settings, spec: MachineSpec, home: Home) -> None:
        self._host = host
        self._settings = settings
        self._spec = spec
        self._home = home
        self._where = f"machine {spec.name}"

    @property
    def machine(self) -> MachineSettings:
        return machine_settings(self._spec)

    def check(self, *, disks: bool = True) -> None:
        """Raises ConfigError, naming the setting, if the machine could not be made here.

        Args:
            disks: Whether its own disks must be here, too: those of one that arrives may come.
        """
        machine = self.machine
        coming = {f"disks[{i}].path" for i, disk in enumerate(machine.disks) if not disk.shared}
        for name, path in self._files(machine).items():
            if not path.exists() and (disks or name not in coming):
                raise ConfigError(
                    f"{self._where}: {name} is {path}, which does not exist on this node",
                    hint="put the file there, or correct the setting",
                    setting=name,
                )
        self._extra(machine)
        self._host.machine_type(machine.machine_type)

    def files(self) -> dict[str, Path]:
        """Where the files of the machine's settings are here, by setting; they need not exist.

        Raises: ConfigError if one of them is a relative path and the node does not say to what.
        """
        return self._files(self.machine)

    def extra(self) -> tuple[str, ...]:
        """The machine's own arguments. Raises ConfigError if their file cannot be read."""
        return self._extra(self.machine)

    def digests(self) -> dict[str, str]:
        """BLAKE3 of the kernel and the initial RAM disk here. Raises ConfigError."""
        files = self.files()
        return {name: _digest(files[name], name) for name in ("kernel", "initrd") if name in files}

    def _files(self, machine: MachineSettings) -> dict[str, Path]:
        named = {
            "kernel": machine.kernel,
            "initrd": machine.initrd,
            "arguments_file": machine.arguments_file,
        }
        named.update({f"disks[{i}].path": disk.path for i, disk in enumerate(machine.disks)})
        return {
            name: resolve(path, self._settings, f"{self._where}: {name}")
            for name, path in named.items()
            if path
        }

    def _extra(self, machine: MachineSettings) -> tuple[str, ...]:
        path = self._files(machine).get("arguments_file")
        where = f"{self._where}: arguments_file"
        return machine.arguments + (read_arguments_file(path, where) if path else ())

    def _accel(self, wanted: str) -> tuple[str, str]:
        """The accelerator and, if emulation was not asked for, why."""
        if wanted == "tcg":
            return wanted, ""
        kvm = self._host.kvm()
        if kvm.works:
            return "kvm", ""
        if wanted == "kvm":
            raise ConfigError(
                f"{self._where}: accel is kvm, which does not work here: {kvm.reason}",
                hint=kvm.hint or "set accel to tcg or auto",
                setting="accel",
            )
        return "tcg", kvm.reason

    def facts(self, *, accel: str | None = None, reason: str = "") -> Origin:
        """What the machine would run with if it were started here now."""
        machine = self.machine
        accel = accel or machine.accel or self._settings.accel
        cpu = machine.cpu or {"kvm": "host", "tcg": "qemu64"}.get(accel, "")
        warning = unsound_dirty_tracking(self._host.version, accel)
        return Origin(
            driver="qemu",
            qemu=self._host.version,
            machine_type=self._host.machine_type(machine.machine_type),
            accel=accel,
            cpu=cpu,
            cpus=machine.cpus,
            memory_bytes=self._spec.memory_bytes,
            processor_flags=tuple(sorted(processor_flags())) if _is_hosts_own(cpu) else (),
            files=self.digests(),
            unshared_disks=tuple(disk.path for disk in machine.disks if not disk.shared),
            accel_reason=reason,
            warnings=(warning,) if warning else (),
        )

    def start(self) -> tuple[tuple[str, ...], Origin]:
        """The command line of a machine that starts, and its facts."""
        self.check()
        accel, reason = self._accel(self.machine.accel or self._settings.accel)
        facts = self.facts(accel=accel, reason=reason)
        self._say(facts)
        return self._arguments(facts), facts

    def arrive(self, origin: Origin) -> tuple[tuple[str, ...], Origin]:
        """The command line of a machine that arrives.

        Raises: Refused, with the cure, if it could not run here.
        """
        if origin.accel not in ("kvm", "tcg"):
            raise Refused(
                f"{self._where} could not run here: its accelerator is {origin.accel[:80]!r}",
                hint="start it at its source first",
            )
        try:
            self.check()
            accel, _ = self._accel(origin.accel)
            here = self.facts(accel=accel)
        except ConfigError as error:
            raise Refused(f"{self._where} could not run here: {error}", hint=error.hint) from error
        self._compare(origin, here)
        # What the guest believes to run on is what it was started with, whatever is newest here.
        facts = Origin(
            driver="qemu",
            qemu=here.qemu,
            machine_type=origin.machine_type,
            accel=origin.accel,
            cpu=origin.cpu,
            cpus=here.cpus,
            memory_bytes=here.memory_bytes,
            processor_flags=here.processor_flags,
            files=here.files,
            unshared_disks=here.unshared_disks,
            warnings=here.warnings,
        )
        self._say(facts)
        return (*self._arguments(facts), "-S", "-incoming", "defer"), facts

    def _compare(self, origin: Origin, here: Origin) -> None:
        def refuse(what: str, hint: str) -> None:
            raise Refused(f"{self._where} could not run here: {what}", hint=hint)

        theirs = ".".join(map(str, origin.qemu))
        ours = ".".join(map(str, here.qemu))
        if origin.memory_bytes != here.memory_bytes:
            refuse(
                f"it has {origin.memory_bytes} bytes of memory, its spec says {here.memory_bytes}",
                "stop and start it at its source, so that it takes its spec's memory",
            )
        if origin.cpus != here.cpus:
            refuse(
                f"it has {origin.cpus} processors, its spec says {here.cpus}",
                "stop and start it at its source, so that it takes its spec's processors",
            )
        if _family(origin.machine_type) != _family(here.machine_type):
            refuse(
                f"it is a {origin.machine_type}, its spec says {self.machine.machine_type}",
                "stop and start it at its source, so that it takes its spec's machine_type",
            )
        if origin.cpu != here.cpu:
            refuse(
                f"its processor is {origin.cpu[:80]!r}, here it would be {here.cpu!r}",
                "stop and start it at its source, so that it takes its spec's cpu",
            )
        if origin.machine_type not in self._host.machine_types:
            refuse(
                f"it is a {origin.machine_type} of QEMU {theirs}, which QEMU {ours} has not",
                "install a QEMU as new as the source's here, or start the machine with a "
                "machine_type that both have",
            )
        if origin.accel != here.accel:
            refuse(
                f"it runs with {origin.accel}, here it would run with {here.accel}",
                "start it with an accel that works on both nodes",
            )
        missing = set(origin.processor_flags) - processor_flags()
        if _is_hosts_own(origin.cpu) and missing:
            few = ", ".join(sorted(missing)[:8])
            refuse(
                f"its source's processor has what ours lacks ({few})",
                "start it with a named cpu that both hosts have, such as qemu64",
            )
        for name, digest in origin.files.items():
            if here.files.get(name) != digest:
                refuse(
                    f"its {name} is another file here, and a reboot would start that",
                    "copy the file from the source's node",
                )
        if origin.qemu[:2] > here.qemu[:2]:
            log.warning("%s arrives from the newer QEMU %s at %s", self._where, theirs, ours)

    def _say(self, facts: Origin) -> None:
        if facts.accel_reason:
            log.warning(
                "%s runs emulated (tcg), which is slow: %s", self._where, facts.accel_reason
            )
        else:
            log.info("%s runs with %s", self._where, facts.accel)
        for warning in facts.warnings:
            log.warning("%s: %s", self._where, warning)

    def _arguments(self, facts: Origin) -> tuple[str, ...]:
        machine, files, home = self.machine, self._files(self.machine), self._home
        monitor = option(home.socket("qmp.sock"))
        console = option(home.socket("console.sock"))
        made = [self._host.binary, "-name", f"guest={self._spec.name}"]
        made += ["-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown"]
        # The name pc.ram is the one that QEMU itself uses, so that the stream's records are the
        # same as those of a QEMU that was started without a memory file.
        made += ["-object", f"memory-backend-memfd,id=pc.ram,size={facts.memory_bytes},share=on"]
        made += ["-machine", f"{facts.machine_type},memory-backend=pc.ram"]
        made += ["-accel", facts.accel, "-cpu", facts.cpu]
        made += ["-m", f"{facts.memory_bytes // MIB}M", "-smp", str(facts.cpus)]
        made += ["-chardev", f"socket,id=novacron-qmp,path={monitor},server=on,wait=off"]
        made += ["-mon", "chardev=novacron-qmp,mode=control"]
        logfile = f"logfile={option(home.console_log)},logappend=on"
        made += [
            "-chardev",
            f"socket,id=novacron-console,path={console},server=on,wait=off,{logfile}",
        ]
        made += ["-serial", "chardev:novacron-console"]
        if machine.kernel:
            made += ["-kernel", str(files["kernel"])]
            made += ["-append", machine.append] if machine.append else []
            made += ["-initrd", str(files["initrd"])] if machine.initrd else []
        for number, disk in enumerate(machine.disks):
            path = option(files[f"disks[{number}].path"])
            made += [
                "-drive",
                f"file={path},if=virtio,node-name={NODE}{number},format={disk.format},"
                f"cache={disk.cache},"
                f"readonly={'on' if disk.readonly else 'off'}",
            ]
        return (*made, *self._extra(machine))


def _family(machine_type: str) -> str:
    """A machine type without its version."""
    return re.sub(r"-\d+\.\d+$", "", machine_type)


def _is_hosts_own(cpu: str) -> bool:
    return cpu.partition(",")[0] in ("host", "max")


def _digest(path: Path, name: str) -> str:
    hasher = blake3()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                hasher.update(piece)
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error}", setting=name) from error
    return hasher.hexdigest()
