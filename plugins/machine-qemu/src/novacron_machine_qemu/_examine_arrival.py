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
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from novacron import ConfigError, MachineSpec, NovacronError, Obstacle, Refused

from novacron_machine_qemu import _arguments as given
from novacron_machine_qemu._candidate import Candidate, found
from novacron_machine_qemu._command import Builder, Origin, read_origin
from novacron_machine_qemu._examine import arguments_digest
from novacron_machine_qemu._examine_arguments import about_arguments
from novacron_machine_qemu._examine_disks import about_disks
from novacron_machine_qemu._host import OLDEST, Host, processor_flags
from novacron_machine_qemu._processors import is_hosts_own, processors
from novacron_machine_qemu._settings import Settings, machine_settings
from novacron_machine_qemu._told import read_told

# Clocks that differ by less may do so because of the question's own way.
CLOCK_SKEW_S: Final = 30.0
_CPU: Final = re.compile(r"[\w.,=+-]{0,1024}")
_BIG: Final = 1 << 62


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
        return [found("settings.refused", error.message, error.hint or "correct the setting")]
    try:
        source = read_origin(origin)
        told = read_told(origin)
        _bound(source)
    except (Refused, ValueError) as error:
        return [
            found(
                "origin.unsound",
                f"what its source says of the machine is not sound: {error}",
                "use the same version of novacron-machine-qemu on both nodes",
            )
        ]
    try:
        version = host.version
    except NovacronError as error:
        return [found("qemu.missing", error.message, error.hint or "install QEMU")]
    arrival = Candidate(
        host=host,
        settings=settings,
        spec=spec,
        machine=machine,
        source=source,
        told=told,
        builder=builder,
        storage=str(origin.get("storage", "")),
        neighbours=neighbours,
    )
    options = _options(arrival)
    return [
        *_about_qemu(arrival, version),
        *_about_settings(arrival),
        *_about_machine_type(arrival),
        *_about_accelerator(arrival),
        *_about_processor(arrival),
        *_about_files(arrival, options),
        *about_disks(arrival),
        *about_arguments(arrival, options),
        *_about_clock(arrival),
    ]


def _bound(source: Origin) -> None:
    """Raise ValueError for what a guest cannot have, or what would be no name on a command line."""
    if not _CPU.fullmatch(source.cpu) or not re.fullmatch(r"[\w.-]{0,64}", source.machine_type):
        raise ValueError("its processor or its machine type is no name")
    if len(source.qemu) not in (1, 2, 3) or not all(0 <= part < 10_000 for part in source.qemu):
        raise ValueError("its QEMU has no version")
    if max(len(source.processor_flags), len(source.files), len(source.disks)) > 4096:
        raise ValueError("it goes on for too long")


def _about_qemu(arrival: Candidate, version: tuple[int, int, int]) -> Iterator[Obstacle]:
    ours, theirs = ".".join(map(str, version)), ".".join(map(str, arrival.source.qemu))
    if version[:2] < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        yield found(
            "qemu.too-old",
            f"{arrival.host.version_text} is older than {oldest}",
            f"install QEMU {oldest} or newer, or set binary in [machine.qemu]",
            here=ours,
            oldest=oldest,
        )
    elif arrival.source.qemu[:2] > version[:2]:
        yield found(
            "qemu.older",
            f"the machine comes from the newer QEMU {theirs} to {ours}: what that saves, this "
            "one mostly understands, and QEMU does not promise it",
            f"install QEMU {theirs} here",
            blocks=False,
            here=ours,
            there=theirs,
        )


def _about_settings(arrival: Candidate) -> Iterator[Obstacle]:
    """What the machine was started with, against what its settings say now."""
    runs_with: dict[str, tuple[Any, Any]] = {
        "memory_bytes": (arrival.source.memory_bytes, arrival.spec.memory_bytes),
        "cpus": (arrival.source.cpus, arrival.machine.cpus),
    }
    if arrival.machine.cpu:
        runs_with["cpu"] = (arrival.source.cpu, arrival.machine.cpu)
    means = arrival.host.machine_types.get(arrival.machine.machine_type, "")
    if means and _family(means) != _family(arrival.source.machine_type):
        runs_with["machine_type"] = (arrival.source.machine_type, arrival.machine.machine_type)
    for setting, (now, wanted) in runs_with.items():
        if now != wanted:
            yield found(
                "settings.not-taken",
                f"it runs with the {setting} {now!s:.80}, and its settings say {wanted!s:.80}",
                "stop and start it at its source, so that it takes its settings",
                setting=setting,
                value=wanted,
            )


def _about_machine_type(arrival: Candidate) -> Iterator[Obstacle]:
    wanted = arrival.source.machine_type
    types = arrival.host.machine_types
    if wanted in types:
        return
    here = {name for name in types if _family(name) == _family(wanted)}
    both = here & set(arrival.told.machine_types) if arrival.told.machine_types else here
    # A machine type of a later QEMU than the source's own is none that the source has.
    both = {name for name in both if _version(name) <= _version(wanted)}
    newest = max(both, key=_version, default="")
    cure = f"install a QEMU that has {wanted} here"
    if newest:
        cure = (
            f"stop the machine, set its machine_type to {newest}, the newest that both have, "
            f"and start it; or {cure}"
        )
    yield found(
        "machine-type.missing",
        f"it is a {wanted}, which {arrival.host.version_text} has not",
        cure,
        setting="machine_type",
        value=newest,
        both=sorted(both, key=_version)[-8:],
    )


def _about_accelerator(arrival: Candidate) -> Iterator[Obstacle]:
    accel = arrival.source.accel
    if accel not in ("kvm", "tcg"):
        yield found(
            "accelerator.unknown",
            f"it is not known which accelerator the machine runs with ({accel:.20})",
            "start it at its source",
        )
    elif accel == "kvm" and not (kvm := arrival.host.kvm()).works:
        yield found(
            "accelerator.missing",
            f"it runs with KVM, which does not work here: {kvm.reason}",
            f"{kvm.hint or 'make KVM work here'}; or stop the machine, set its accel to tcg "
            "(slow), and start it",
            setting="accel",
            value="tcg",
        )
    elif arrival.machine.accel not in ("", "auto", accel):
        yield found(
            "settings.not-taken",
            f"it runs with {accel}, and its settings say {arrival.machine.accel}",
            "stop and start it at its source, so that it takes its settings",
            setting="accel",
            value=arrival.machine.accel,
        )


def _about_processor(arrival: Candidate) -> Iterator[Obstacle]:
    accel, cpu = arrival.source.accel, arrival.source.cpu
    if accel not in ("kvm", "tcg") or (accel == "kvm" and not arrival.host.kvm().works):
        return
    try:
        known = processors(arrival.host.binary, accel)
        here, offered = known.given(cpu), known.offered()
        # A source that did not tell is believed: what its guest lacks of its model, only it
        # could say.
        wanted = frozenset(arrival.told.guest_flags) or here or frozenset()
        missing = wanted - (here or frozenset())
        if is_hosts_own(cpu):
            missing |= set(arrival.source.processor_flags) - processor_flags()
        if here is not None and not missing:
            return
        both = offered & frozenset(arrival.told.host_flags or offered)
        proposal = known.propose(cpu, missing if here is not None else (), both, wanted)
    except NovacronError as error:
        yield found(
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
        yield found(
            "cpu.model-missing",
            f"its processor is a {cpu:.80}, which {arrival.host.version_text} does not know",
            cure,
            **facts,
        )
        return
    few = ", ".join(sorted(missing)[:8]) + (" …" if len(missing) > 8 else "")
    own = " (it was given all that its source has)" if is_hosts_own(cpu) else ""
    yield found(
        "cpu.feature-missing",
        f"its processor, {cpu:.80}{own}, has what this host has not: {few}",
        cure,
        missing=sorted(missing),
        **facts,
    )


def _options(arrival: Candidate) -> list[given.Option]:
    """The machine's own arguments, those of its file too if it is here."""
    try:
        return list(given.options(arrival.builder.extra()))
    except ConfigError:
        return list(given.options(arrival.machine.arguments))


def _about_files(arrival: Candidate, options: Sequence[given.Option]) -> Iterator[Obstacle]:
    """What the machine is made of beside its disks."""
    machine = arrival.machine
    named = {
        "kernel": machine.kernel,
        "initrd": machine.initrd,
        "arguments_file": machine.arguments_file,
    }
    places: dict[str, Path] = {}
    for name, path in named.items():
        if path:
            where = arrival.place(name, path)
            if isinstance(where, Obstacle):
                yield where
            elif not where.is_file():
                yield _missing_file(name, where)
            else:
                places[name] = where
    if set(places) != {name for name, path in named.items() if path}:
        return
    try:
        digests = arrival.builder.digests()
        arrival.builder.extra()
    except ConfigError as error:
        yield found("settings.refused", error.message, error.hint or "correct the file")
        return
    for name, digest in arrival.source.files.items():
        if digests.get(name, digest) != digest:
            yield found(
                "file.different",
                f"its {name} is another file here ({places[name]}), and a reboot would start that",
                f"copy the source's {name} to {places[name]}",
                setting=name,
                path=str(places[name]),
                digest=digest,
            )
    said, file = arrival.told.arguments, places.get("arguments_file")
    if said and file is not None and arguments_digest(options) != said:
        yield found(
            "file.different",
            f"its arguments_file says something else here ({file})",
            f"copy the source's arguments_file to {file}",
            setting="arguments_file",
            path=str(file),
        )


def _about_clock(arrival: Candidate) -> Iterator[Obstacle]:
    there = arrival.told.clock_s
    if not there or not math.isfinite(there):
        return
    ahead = there - time.time()
    if abs(ahead) > CLOCK_SKEW_S:
        word = "ahead of" if ahead > 0 else "behind"
        yield found(
            "clock.skew",
            f"the source's clock is {min(abs(ahead), _BIG):.0f} s {word} this one's: the "
            "guest's would be, too, and certificates may not be valid on one side",
            "set both clocks (timedatectl set-ntp true)",
            blocks=False,
            seconds=round(max(-_BIG, min(ahead, _BIG))),
        )


def _family(machine_type: str) -> str:
    """A versioned machine type without its version; empty if it has none."""
    return machine_type.rpartition("-")[0]


def _version(machine_type: str) -> tuple[int, ...]:
    """``pc-q35-7.2`` as (7, 2)."""
    return tuple(int(part) for part in re.findall(r"\d+", machine_type.rpartition("-")[2])[:4])


def _missing_file(name: str, path: Path) -> Obstacle:
    return found(
        "file.missing",
        f"its {name} is {path}, which is not there on this node",
        f"copy it from the source to {path}",
        setting=name,
        path=str(path),
    )
