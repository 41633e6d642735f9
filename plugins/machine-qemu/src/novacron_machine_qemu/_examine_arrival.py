"""What stands in the way of a QEMU machine's coming here, found before anything of it is made.

All of it is found at once, and each finding has its cure: in words, and in ``facts`` as a program
can apply it:

``setting`` and ``value``   what to set of the machine at its source (stop it, set it, start it)
``option`` and ``value``    what to say with the move
``run``                     a command for this host
``path``                    the file on this host that it is about
"""

from __future__ import annotations

import math
import os
import re
import resource
import shlex
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from novacron import ConfigError, MachineSpec, NovacronError, Obstacle, Refused
from novacron_qemu.blocks import DISK_BYTES_MAX

from novacron_machine_qemu import _arguments as given
from novacron_machine_qemu import _networks
from novacron_machine_qemu._command import Builder, Origin, read_origin
from novacron_machine_qemu._disk_files import RESERVE_BYTES, OriginDisk, find_tool, left_by
from novacron_machine_qemu._examine import arguments_digest
from novacron_machine_qemu._host import OLDEST, Host
from novacron_machine_qemu._processors import is_hosts_own, processors
from novacron_machine_qemu._settings import MachineSettings, Settings, machine_settings, resolve
from novacron_machine_qemu._storage import OwnDisk, goes_along, is_proved
from novacron_machine_qemu._told import Told, ToldDisk, read_told

# Clocks that differ by less may do so because of the question's own way.
CLOCK_SKEW_S: Final = 30.0
_CPU: Final = re.compile(r"[\w.,=+-]{0,1024}")
_LOCAL: Final = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs", "zfs")
_BIG: Final = 1 << 62


def _found(code: str, what: str, cure: str, *, blocks: bool = True, **facts: Any) -> Obstacle:
    return Obstacle(code=code, what=what, cure=cure, blocks=blocks, side="target", facts=facts)


def examine_arrival(
    host: Host,
    settings: Settings,
    spec: MachineSpec,
    origin: Mapping[str, Any],
    builder: Builder,
    neighbours: Mapping[str, Sequence[str]],
) -> list[Obstacle]:
    """Everything in the way of a machine's coming. May block for seconds; changes nothing.

    Args:
        neighbours: Every other machine's own arguments, by its name.
    """
    try:
        machine = machine_settings(spec)
    except ConfigError as error:
        return [_found("settings.refused", error.message, error.hint or "correct the setting")]
    try:
        source = read_origin(origin)
        told = read_told(origin)
        _bound(source)
    except (Refused, ValueError) as error:
        return [
            _found(
                "origin.unsound",
                f"what its source says of the machine is not sound: {error}",
                "use the same version of novacron-machine-qemu on both nodes",
            )
        ]
    try:
        version = host.version
    except NovacronError as error:
        return [_found("qemu.missing", error.message, error.hint or "install QEMU")]
    arrival = _Arrival(host, settings, spec, machine, source, told, builder)
    arrival.storage = str(origin.get("storage", ""))
    arrival.neighbours = neighbours
    return [*arrival.about_qemu(version), *arrival.all()]


def _bound(source: Origin) -> None:
    """Raise ValueError for what a guest cannot have, or what would be no name on a command line."""
    if not _CPU.fullmatch(source.cpu) or not re.fullmatch(r"[\w.-]{0,64}", source.machine_type):
        raise ValueError("its processor or its machine type is no name")
    if len(source.qemu) not in (1, 2, 3) or not all(0 <= part < 10_000 for part in source.qemu):
        raise ValueError("its QEMU has no version")
    if max(len(source.processor_flags), len(source.files), len(source.disks)) > 4096:
        raise ValueError("it goes on for too long")


class _Arrival:
    """One machine that may come, and this host."""

    storage = ""
    neighbours: Mapping[str, Sequence[str]] = {}

    def __init__(
        self,
        host: Host,
        settings: Settings,
        spec: MachineSpec,
        machine: MachineSettings,
        source: Origin,
        told: Told,
        builder: Builder,
    ) -> None:
        self._host = host
        self._settings = settings
        self._spec = spec
        self._machine = machine
        self._source = source
        self._told = told
        self._builder = builder
        self._options: list[given.Option] = []

    def all(self) -> Iterator[Obstacle]:
        yield from self.about_spec()
        yield from self.about_machine_type()
        yield from self.about_accelerator()
        yield from self.about_processor()
        yield from self.about_files()
        yield from self.about_disks()
        yield from self.about_arguments()
        yield from self.about_clock()

    # -- QEMU ------------------------------------------------------------------------------------

    def about_qemu(self, version: tuple[int, int, int]) -> Iterator[Obstacle]:
        ours, theirs = ".".join(map(str, version)), ".".join(map(str, self._source.qemu))
        if version[:2] < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            yield _found(
                "qemu.too-old",
                f"{self._host.version_text} is older than {oldest}",
                f"install QEMU {oldest} or newer, or set binary in [machine.qemu]",
                here=ours,
                oldest=oldest,
            )
        elif self._source.qemu[:2] > version[:2]:
            yield _found(
                "qemu.older",
                f"the machine comes from the newer QEMU {theirs} to {ours}: what that saves, this "
                "one mostly understands, and QEMU does not promise it",
                f"install QEMU {theirs} here",
                blocks=False,
                here=ours,
                there=theirs,
            )

    def about_spec(self) -> Iterator[Obstacle]:
        """What the machine was started with, against what its settings say now."""
        runs_with = {
            "memory_bytes": (self._source.memory_bytes, self._spec.memory_bytes),
            "cpus": (self._source.cpus, self._machine.cpus),
        }
        if self._machine.cpu:
            runs_with["cpu"] = (self._source.cpu, self._machine.cpu)  # type: ignore[assignment]
        for setting, (now, wanted) in runs_with.items():
            if now != wanted:
                yield _found(
                    "settings.not-taken",
                    f"it runs with the {setting} {now!s:.80}, and its settings say {wanted!s:.80}",
                    "stop and start it at its source, so that it takes its settings",
                    setting=setting,
                    value=wanted,
                )

    def about_machine_type(self) -> Iterator[Obstacle]:
        wanted = self._source.machine_type
        types = self._host.machine_types
        if wanted in types:
            return
        family = wanted.rpartition("-")[0] or wanted
        here = {name for name in types if name.rpartition("-")[0] == family}
        both = here & set(self._told.machine_types) if self._told.machine_types else here
        # A machine type of a later QEMU than the source's own is none that the source has.
        both = {name for name in both if _version(name) <= _version(wanted)}
        newest = max(both, key=_version, default="")
        cure = f"install a QEMU that has {wanted} here"
        if newest:
            cure = (
                f"stop the machine, set its machine_type to {newest}, the newest that both have, "
                f"and start it; or {cure}"
            )
        yield _found(
            "machine-type.missing",
            f"it is a {wanted}, which {self._host.version_text} has not",
            cure,
            setting="machine_type",
            value=newest,
            both=sorted(both, key=_version)[-8:],
        )

    def about_accelerator(self) -> Iterator[Obstacle]:
        accel = self._source.accel
        if accel not in ("kvm", "tcg"):
            yield _found(
                "accelerator.unknown",
                f"it is not known which accelerator the machine runs with ({accel:.20})",
                "start it at its source",
            )
        elif accel == "kvm" and not (kvm := self._host.kvm()).works:
            yield _found(
                "accelerator.missing",
                f"it runs with KVM, which does not work here: {kvm.reason}",
                f"{kvm.hint or 'make KVM work here'}; or stop the machine, set its accel to tcg "
                "(slow), and start it",
                setting="accel",
                value="tcg",
            )
        elif self._machine.accel not in ("", "auto", accel):
            yield _found(
                "settings.not-taken",
                f"it runs with {accel}, and its settings say {self._machine.accel}",
                "stop and start it at its source, so that it takes its settings",
                setting="accel",
                value=self._machine.accel,
            )

    def about_processor(self) -> Iterator[Obstacle]:
        accel, cpu = self._source.accel, self._source.cpu
        if accel not in ("kvm", "tcg") or (accel == "kvm" and not self._host.kvm().works):
            return
        try:
            known = processors(self._host.binary, accel)
            here, offered = known.given(cpu), known.offered()
            wanted = frozenset(self._told.guest_flags) or known.wanted(cpu) or frozenset()
            if here is not None and wanted <= here:
                return
            both = offered & frozenset(self._told.host_flags or offered)
            missing = wanted - (frozenset() if here is None else here)
            proposal = known.propose(cpu, missing if here is not None else (), both, wanted)
        except NovacronError as error:
            yield _found(
                "cpu.unknown",
                f"what this host's QEMU can give a guest is not known: {error.message}",
                "see that [machine.qemu] binary starts",
                blocks=False,
            )
            return
        facts: dict[str, Any] = {
            "setting": "cpu",
            "value": proposal.cpu,
            "alternatives": list(proposal.others),
            "baseline": sorted(both),
        }
        cure = "name a target with a processor as new as the source's"
        if proposal.cpu:
            cure = (
                f"stop the machine, set its cpu to {proposal.cpu} "
                + (
                    "(the same, less what one of the hosts lacks), "
                    if proposal.switched_off
                    else "(the nearest model that both hosts have), "
                )
                + f"and start it; or {cure}"
            )
        if here is None:
            yield _found(
                "cpu.model-missing",
                f"its processor is a {cpu:.80}, which {self._host.version_text} does not know",
                cure,
                **facts,
            )
            return
        few = ", ".join(sorted(missing)[:8]) + (" …" if len(missing) > 8 else "")
        own = " (it was given all that its source has)" if is_hosts_own(cpu) else ""
        yield _found(
            "cpu.feature-missing",
            f"its processor, {cpu:.80}{own}, has what this host has not: {few}",
            cure,
            missing=sorted(missing),
            **facts,
        )

    # -- files and disks -------------------------------------------------------------------------

    def _resolved(self, name: str, path: str) -> Path | Obstacle:
        try:
            return resolve(path, self._settings, f"machine {self._spec.name}: {name}")
        except ConfigError as error:
            return _found("settings.refused", error.message, error.hint, setting=name, path=path)

    def about_files(self) -> Iterator[Obstacle]:
        """What the machine is made of beside its disks."""
        machine = self._machine
        named = {
            "kernel": machine.kernel,
            "initrd": machine.initrd,
            "arguments_file": machine.arguments_file,
        }
        whole = True
        for name, path in named.items():
            if not path:
                continue
            where = self._resolved(name, path)
            if isinstance(where, Obstacle):
                whole = False
                yield where
            elif not where.is_file():
                whole = False
                yield _missing_file(name, where)
        if not whole:
            self._options = list(given.options(machine.arguments))
            return
        try:
            digests = self._builder.digests()
            self._options = list(given.options(self._builder.extra()))
        except ConfigError as error:
            self._options = list(given.options(machine.arguments))
            yield _found("settings.refused", error.message, error.hint or "correct the file")
            return
        for name, digest in self._source.files.items():
            if name in digests and digests[name] != digest:
                path = str(self._resolved(name, named[name]))
                yield _found(
                    "file.different",
                    f"its {name} is another file here ({path}), and a reboot would start that",
                    f"copy the source's {name} to {path}",
                    setting=name,
                    path=path,
                    digest=digest,
                )
        said = self._told.arguments
        if said and machine.arguments_file and arguments_digest(self._options) != said:
            path = str(self._resolved("arguments_file", machine.arguments_file))
            yield _found(
                "file.different",
                f"its arguments_file says something else here ({path})",
                f"copy the source's arguments_file to {path}",
                setting="arguments_file",
                path=path,
            )

    def about_disks(self) -> Iterator[Obstacle]:
        told = {disk.number: disk for disk in self._told.disks}
        images = {disk.number: disk for disk in self._source.disks}
        needed: dict[Path, int] = {}
        for number, disk in enumerate(self._machine.disks):
            where = self._resolved(f"disks[{number}].path", disk.path)
            if isinstance(where, Obstacle):
                yield where
                continue
            own = OwnDisk(number=number, path=where, disk=disk)
            if goes_along(own, self.storage):
                image = images.get(number)
                yield from self._about_copied(own, image)
                kept = left_by(where, self._spec.name, self._spec.tenant) is not None
                if image is not None and where.parent.is_dir() and not kept:
                    needed[where.parent] = needed.get(where.parent, 0) + max(
                        0, min(image.content_bytes, image.size_bytes, DISK_BYTES_MAX)
                    )
            elif disk.shared or self.storage:
                yield from self._about_shared(own, told.get(number))
        yield from _about_room(needed)

    def _about_shared(self, own: OwnDisk, told: ToldDisk | None) -> Iterator[Obstacle]:
        where, medium = own.path, own.disk.readonly
        if not where.exists():
            yield _found(
                "media.missing" if medium else "disk.not-reachable",
                f"its disk {where} is said to be shared, and is not there on this node",
                f"mount the storage that it lies on here, so that it is at {where}; or "
                + (
                    "copy it there, for nobody writes to it"
                    if medium
                    else "do not call it shared, and take it along (--with-storage)"
                ),
                path=str(where),
                disk=own.number,
            )
            return
        if told is None or not where.is_file():
            return
        here = where.stat()
        if not is_proved(own, self.storage):
            if here.st_size != told.length:
                yield _found(
                    "media.different",
                    f"its disk {where} is another one here ({here.st_size} bytes, "
                    f"{told.length} at the source)",
                    f"copy it from the source to {where}, for nobody writes to it",
                    path=str(where),
                    size_bytes=told.length,
                )
        elif told.inode and here.st_ino != told.inode:
            yield _found(
                "disk.not-shared",
                f"its disk {where} is said to be shared, and is another file here than at the "
                "source",
                "mount the very same storage on both nodes; or do not call it shared, move the "
                "file here away, and take the disk along (--with-storage)",
                # Some network file systems number their files anew on each host.
                blocks=_is_local(where),
                path=str(where),
                disk=own.number,
            )
        below = where
        for backing in told.backing:
            below = below.parent / backing.removeprefix("file:")
            if not backing.startswith("json:") and not below.exists():
                yield _found(
                    "disk.backing-missing",
                    f"its disk {where} stands on the image {below}, which is not there on this "
                    "node",
                    f"copy it from the source to {below}, or mount the storage that it lies on",
                    path=str(below),
                    disk=own.number,
                )

    def _about_copied(self, own: OwnDisk, image: OriginDisk | None) -> Iterator[Obstacle]:
        where, folder = own.path, own.path.parent
        if image is None or image.format != own.disk.format or image.size_bytes < 1:
            yield _found(
                "disk.unsound",
                f"the source says nothing sound of its disk {own.disk.path}",
                "look at the disk at the source (qemu-img check), and use the same version of "
                "novacron-machine-qemu on both nodes",
                disk=own.number,
            )
        elif image.size_bytes > DISK_BYTES_MAX or image.size_bytes % 512:
            yield _found(
                "disk.too-large",
                f"its disk {own.disk.path} has {min(image.size_bytes, _BIG)} bytes: it cannot go "
                "along",
                f"disks of at most {DISK_BYTES_MAX >> 40} TiB and whole sectors can; put it on "
                "shared storage (--storage shared)",
                disk=own.number,
                option="storage",
                value="shared",
            )
        if not folder.is_dir():
            yield _found(
                "disk.no-folder",
                f"its disk would come to {where}, and there is no folder {folder} here",
                f"make it: mkdir -p {shlex.quote(str(folder))}",
                path=str(folder),
                run=["mkdir", "-p", str(folder)],
            )
        elif not os.access(folder, os.W_OK | os.X_OK):
            yield _found(
                "disk.not-writable",
                f"its disk would come to {where}, and this node may not write to {folder}",
                "let the node's user write there",
                path=str(folder),
            )
        present = where.exists() or where.is_symlink()
        if present and left_by(where, self._spec.name, self._spec.tenant) is None:
            aside = f"{where}.aside"
            yield _found(
                "disk.exists",
                f"its disk would come to {where}, where there is a file already that this machine "
                "did not leave here",
                f"move it away (mv {shlex.quote(str(where))} {shlex.quote(aside)}), or name "
                "another path in the machine's disks",
                path=str(where),
                run=["mv", "--no-clobber", str(where), aside],
            )
        if own.disk.format == "qcow2" and find_tool() is None:
            yield _found(
                "disk.tool-missing",
                f"qemu-img, which makes images like {own.disk.path}, is not on this node",
                "install it (Debian: the package qemu-utils)",
                disk=own.number,
            )

    # -- what the arguments ask for --------------------------------------------------------------

    def about_arguments(self) -> Iterator[Obstacle]:
        options = self._options
        for file in given.files(options):
            yield from self._about_named_file(file)
        for network in given.networks(options):
            yield from self._about_network(network)
        yield from self._about_addresses(options)
        for path in given.tpm_sockets(options):
            yield from _about_tpm(self._spec.name, path)
        if given.locks_memory(options):
            yield from self._about_locked_memory()
        for memory in given.memory_files(options):
            yield from _about_memory_file(memory)

    def _about_named_file(self, file: given.File) -> Iterator[Obstacle]:
        path = Path(file.path)
        kind = "medium" if file.medium else "file"
        if not path.is_absolute():
            return  # relative to the machine's home, which is made when it comes; QEMU will tell
        code = "media" if file.medium else "disk" if file.written else "file"
        if not path.exists():
            yield _found(
                f"{code}.missing",
                f"its arguments name the {kind} {path}, which is not there on this node",
                f"copy it from the source to {path}"
                + (", or take the medium out of the machine's arguments" if file.medium else ""),
                path=str(path),
            )
            return
        there, here = self._told.files.get(file.path, -1), path.stat().st_size
        if path.is_file() and not file.written and there not in (-1, here):
            yield _found(
                f"{code}.different",
                f"its arguments name the {kind} {path}, which is another one here ({here} bytes, "
                f"{there} at the source)",
                f"copy it from the source to {path}",
                path=str(path),
                size_bytes=there,
            )

    def _about_network(self, network: given.Network) -> Iterator[Obstacle]:
        if network.kind == "bridge":
            yield from self._about_bridge(network)
        elif network.kind == "tap":
            if network.script not in ("no", "") and not os.access(network.script, os.X_OK):
                yield _found(
                    "network.script-missing",
                    f"the script {network.script}, which joins the machine to its network, is not "
                    "there on this node",
                    f"copy it from the source to {network.script}, executable",
                    path=network.script,
                )
            elif network.name and os.geteuid() != 0 and not _networks.exists(network.name):
                yield _missing_network(
                    network.name,
                    *("tuntap", "add", "dev", network.name, "mode", "tap"),
                    *("user", str(os.geteuid())),
                )
        for protocol, address, port in network.ports:
            if why := _networks.why_not_bindable(protocol, address, port):
                yield _found(
                    "network.port-taken",
                    f"it takes the {protocol} port {port} of its host, which it cannot here: {why}",
                    f"free it (ss -lp 'sport = :{port}' says who has it), or give the machine "
                    "another one in hostfwd of its arguments",
                    protocol=protocol,
                    address=address,
                    port=port,
                    setting="arguments",
                )

    def _about_bridge(self, network: given.Network) -> Iterator[Obstacle]:
        name = network.name
        if not _networks.is_bridge(name):
            yield _missing_network(name, "link", "add", "name", name, "type", "bridge")
            return
        # What is called a helper may bring arguments of its own.
        helper = shlex.split(network.helper)[0] if network.helper.strip() else ""
        program = Path(helper or _networks.HELPER)
        if not os.access(program, os.X_OK):
            yield _found(
                "network.helper-missing",
                f"{program}, which joins the machine to the bridge {name}, is not there on this "
                "node",
                "install it (Debian: the package qemu-system-common), or correct helper= in the "
                "machine's arguments",
                path=str(program),
            )
        elif program == _networks.HELPER and not _networks.helper_allows(name):
            rule = f"allow {name}"
            yield _found(
                "network.not-allowed",
                f"{_networks.HELPER_RULES} does not let machines join the bridge {name} here",
                f"add the line '{rule}' to it",
                path=str(_networks.HELPER_RULES),
                line=rule,
            )
        theirs, ours = set(self._told.networks.get(name, ())), set(_networks.subnets(name))
        if theirs and ours and not theirs & ours:
            yield _found(
                "network.subnet-differs",
                f"the bridge {name} carries {', '.join(sorted(theirs)[:4])} at the source and "
                f"{', '.join(sorted(ours))} here: the guest's address may not be reachable",
                "see that the guest's network reaches this bridge (stretch it, or route its "
                "address here), or give the guest an address of this one after the move",
                blocks=False,
                network=name,
                source=sorted(theirs),
                target=sorted(ours),
            )

    def _about_addresses(self, options: Sequence[given.Option]) -> Iterator[Obstacle]:
        mine = list(given.macs(options))
        if not mine:
            return
        taken = {mac: f"this host's {device}" for mac, device in _host_macs().items()}
        for name, arguments in self.neighbours.items():
            if name != self._spec.name:
                for mac in given.macs(list(given.options(arguments))):
                    taken.setdefault(mac, f"the machine {name}")
        free = _free_mac({*taken, *mine})
        for mac in mine:
            if mac in taken:
                yield _found(
                    "network.mac-taken",
                    f"its hardware address {mac} is that of {taken[mac]} here",
                    f"give it another one: stop it, write mac={free} for that card in its "
                    "arguments, and start it",
                    setting="arguments",
                    mac=mac,
                    free=free,
                )

    def _about_locked_memory(self) -> Iterator[Obstacle]:
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        needed = self._spec.memory_bytes + (512 << 20)  # QEMU's own, with emulation's code
        if limit == resource.RLIM_INFINITY or limit >= needed or _may_lock():
            return
        command = ["prlimit", "--pid", str(os.getpid()), f"--memlock={needed}:{needed}"]
        yield _found(
            "memory.lock-limit",
            f"it keeps its memory locked, and this node may lock {_mib(limit)} only",
            f"raise the limit of the node: {shlex.join(command)}, and LimitMEMLOCK= of its service",
            run=command,
            needed_bytes=needed,
            limit_bytes=limit,
        )

    # -- time ------------------------------------------------------------------------------------

    def about_clock(self) -> Iterator[Obstacle]:
        there = self._told.clock_s
        if not there or not math.isfinite(there):
            return
        ahead = there - time.time()
        if abs(ahead) > CLOCK_SKEW_S:
            word = "ahead of" if ahead > 0 else "behind"
            yield _found(
                "clock.skew",
                f"the source's clock is {min(abs(ahead), _BIG):.0f} s {word} this one's: the "
                "guest's would be, too, and certificates may not be valid on one side",
                "set both clocks (timedatectl set-ntp true)",
                blocks=False,
                seconds=round(max(-_BIG, min(ahead, _BIG))),
            )


def _version(machine_type: str) -> tuple[int, ...]:
    """``pc-q35-7.2`` as (7, 2)."""
    return tuple(int(part) for part in re.findall(r"\d+", machine_type.rpartition("-")[2])[:4])


def _about_room(needed: Mapping[Path, int]) -> Iterator[Obstacle]:
    """Whether the disks that come fit, those on one file system together."""
    systems: dict[int, tuple[Path, int]] = {}
    for folder, count in needed.items():
        first, before = systems.get(folder.stat().st_dev, (folder, 0))
        systems[folder.stat().st_dev] = (first, before + count)
    for folder, count in systems.values():
        free, wanted = shutil.disk_usage(folder).free, count + RESERVE_BYTES
        if free < wanted:
            yield _found(
                "disk.no-room",
                f"its disks take {_mib(count)} and {_mib(RESERVE_BYTES)} must stay free, and "
                f"{folder} has {_mib(free)}",
                f"free {_mib(wanted - free)} there, or set files in [machine.qemu] to a folder "
                "with room",
                path=str(folder),
                needed_bytes=wanted,
                free_bytes=free,
            )


def _is_local(path: Path) -> bool:
    """Whether a file lies on a file system that no other host can have mounted."""
    number = path.stat().st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        fields = left.split()
        if len(fields) > 2 and fields[2] == wanted:
            return right.split(" ", 1)[0] in _LOCAL
    return False


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"


def _missing_file(name: str, path: Path) -> Obstacle:
    return _found(
        "file.missing",
        f"its {name} is {path}, which is not there on this node",
        f"copy it from the source to {path}",
        setting=name,
        path=str(path),
    )


def _missing_network(name: str, *make: str) -> Obstacle:
    command, up = ["ip", *make], ["ip", "link", "set", name, "up"]
    return _found(
        "network.missing",
        f"it is joined to the network {name}, which this host has not",
        f"make it here ({shlex.join(command)} && {shlex.join(up)}) and join it to the network that "
        "it is at the source; or name another one in the machine's arguments",
        network=name,
        run=["sh", "-c", f"{shlex.join(command)} && {shlex.join(up)}"],
        setting="arguments",
    )


def _about_tpm(name: str, path: str) -> Iterator[Obstacle]:
    if _answers(path):
        return
    folder = f"/var/lib/novacron-tpm/{name}"
    start = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}"]
    start += ["--ctrl", f"type=unixio,path={path}", "--daemon"]
    command = f"mkdir -p {shlex.quote(folder)} && {shlex.join(start)}"
    yield _found(
        "tpm.emulator-missing",
        f"its TPM is emulated by what answers on {path or 'a socket'}, and here nothing does; "
        "the TPM's contents travel with the machine, the emulator does not",
        f"start an emulator that waits for it: {command}",
        path=path,
        run=["sh", "-c", command],
    )


def _answers(path: str) -> bool:
    """Whether somebody listens on a unix socket: it is there, and Linux knows a listener of it.

    Not by connecting: an emulator serves one machine, and ends after that.
    """
    try:
        if not path or not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        listening = Path("/proc/net/unix").read_text(errors="replace")
    except OSError:
        return False
    # Flags 00010000 (__SO_ACCEPTCON) in the fourth column: it listens. A path is given there as the
    # listener wrote it, which may be relative to wherever it was then.
    names = (path, Path(path).name)
    return any(
        fields[3] == "00010000" and fields[-1] in names
        for line in listening.splitlines()
        if len(fields := line.split(maxsplit=7)) == 8
    )


def _about_memory_file(memory: given.MemoryFile) -> Iterator[Obstacle]:
    if memory.huge:
        free = _free_huge_pages(memory.page_bytes)
        pages = -(-memory.size_bytes // memory.page_bytes)
        if free < pages:
            file = f"/sys/kernel/mm/hugepages/hugepages-{memory.page_bytes >> 10}kB/nr_hugepages"
            yield _found(
                "memory.no-huge-pages",
                f"it needs {pages} huge pages of {memory.page_bytes >> 10} KiB, and {free} are "
                "free here",
                f"reserve more: write a number higher by {pages - free} to {file}",
                path=file,
                needed=pages,
                free=free,
            )
        return
    folder = Path(memory.folder)
    if not folder.exists():
        yield _found(
            "memory.no-folder",
            f"it takes memory from {folder}, which is not there on this node",
            f"make it, or mount a hugetlbfs there: mount -t hugetlbfs none {folder}",
            path=str(folder),
        )
        return
    found = os.statvfs(folder)
    if found.f_bavail * found.f_frsize < memory.size_bytes:
        yield _found(
            "memory.no-huge-pages",
            f"it takes {_mib(memory.size_bytes)} of memory from {folder}, which has "
            f"{_mib(found.f_bavail * found.f_frsize)}",
            "reserve more huge pages for it (vm.nr_hugepages), or enlarge it",
            path=str(folder),
            needed=memory.size_bytes,
            free=found.f_bavail * found.f_frsize,
        )


def _free_huge_pages(page_bytes: int) -> int:
    path = f"/sys/kernel/mm/hugepages/hugepages-{page_bytes >> 10}kB/free_hugepages"
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return 0


def _host_macs() -> dict[str, str]:
    nothing = "00:00:00:00:00:00"
    return {mac: name for mac, name in _networks.hardware_addresses().items() if mac != nothing}


def _free_mac(taken: set[str]) -> str:
    """An address of the range that QEMU's makers gave away (52:54:00) and nobody here has."""
    number = 0x525400000001
    while (mac := ":".join(re.findall("..", f"{number:012x}"))) in taken:
        number += 1
    return mac


def _may_lock() -> bool:
    """Whether this process has CAP_IPC_LOCK, by which there is no limit."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return False
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return bool(found and int(found[1], 16) & 1 << 14)
