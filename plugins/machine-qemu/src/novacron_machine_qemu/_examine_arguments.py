"""What a machine's own arguments ask of this host: files, networks, a TPM, memory."""

from __future__ import annotations

import os
import re
import resource
import shlex
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from novacron import Obstacle

from novacron_machine_qemu import _arguments as given
from novacron_machine_qemu import _networks
from novacron_machine_qemu._candidate import Candidate, found, mib


def about_arguments(arrival: Candidate, options: Sequence[given.Option]) -> Iterator[Obstacle]:
    """Everything that they ask for and that is not here."""
    for file in given.files(options):
        yield from _about_named_file(arrival, file)
    for network in given.networks(options):
        yield from _about_network(arrival, network)
    yield from _about_addresses(arrival, options)
    for path in given.tpm_sockets(options):
        yield from _about_tpm(arrival.spec.name, path)
    if given.locks_memory(options):
        yield from _about_locked_memory(arrival)
    for memory in given.memory_files(options):
        yield from _about_memory_file(memory)


def _about_named_file(arrival: Candidate, file: given.File) -> Iterator[Obstacle]:
    path = Path(file.path)
    kind = "medium" if file.medium else "file"
    if not path.is_absolute():
        return  # relative to the machine's home, which is made when it comes; QEMU will tell
    code = "media" if file.medium else "file"
    if not path.exists():
        yield found(
            "disk.not-reachable" if file.written else f"{code}.missing",
            f"its arguments name the {kind} {path}, which is not there on this node",
            f"copy it from the source to {path}"
            + (", or take the medium out of the machine's arguments" if file.medium else ""),
            path=str(path),
        )
        return
    there, here = arrival.told.files.get(file.path, -1), path.stat().st_size
    if path.is_file() and not file.written and there not in (-1, here):
        yield found(
            f"{code}.different",
            f"its arguments name the {kind} {path}, which is another one here ({here} bytes, "
            f"{there} at the source)",
            f"copy it from the source to {path}",
            path=str(path),
            size_bytes=there,
        )


def _about_network(arrival: Candidate, network: given.Network) -> Iterator[Obstacle]:
    if network.kind == "bridge":
        yield from _about_bridge(arrival, network)
    elif network.kind == "tap":
        if network.script not in ("no", "") and not os.access(network.script, os.X_OK):
            yield found(
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
            yield found(
                "network.port-taken",
                f"it takes the {protocol} port {port} of its host, which it cannot here: {why}",
                f"free it (ss -lp 'sport = :{port}' says who has it), or give the machine "
                "another one in hostfwd of its arguments",
                protocol=protocol,
                address=address,
                port=port,
                setting="arguments",
            )


def _about_bridge(arrival: Candidate, network: given.Network) -> Iterator[Obstacle]:
    name = network.name
    if not _networks.is_bridge(name):
        yield _missing_network(name, "link", "add", "name", name, "type", "bridge")
        return
    # What is called a helper may bring arguments of its own.
    helper = shlex.split(network.helper)[0] if network.helper.strip() else ""
    program = Path(helper or _networks.HELPER)
    if not os.access(program, os.X_OK):
        yield found(
            "network.helper-missing",
            f"{program}, which joins the machine to the bridge {name}, is not there on this node",
            "install it (Debian: the package qemu-system-common), or correct helper= in the "
            "machine's arguments",
            path=str(program),
        )
    elif program == _networks.HELPER and not _networks.helper_allows(name):
        rule = f"allow {name}"
        yield found(
            "network.not-allowed",
            f"{_networks.HELPER_RULES} does not let machines join the bridge {name} here",
            f"add the line '{rule}' to it",
            path=str(_networks.HELPER_RULES),
            line=rule,
        )
    theirs, ours = set(arrival.told.networks.get(name, ())), set(_networks.subnets(name))
    if theirs and ours and not theirs & ours:
        yield found(
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


def _missing_network(name: str, *make: str) -> Obstacle:
    command, up = ["ip", *make], ["ip", "link", "set", name, "up"]
    return found(
        "network.missing",
        f"it is joined to the network {name}, which this host has not",
        f"make it here ({shlex.join(command)} && {shlex.join(up)}) and join it to the network that "
        "it is at the source; or name another one in the machine's arguments",
        network=name,
        run=["sh", "-c", f"{shlex.join(command)} && {shlex.join(up)}"],
        setting="arguments",
    )


def _about_addresses(arrival: Candidate, options: Sequence[given.Option]) -> Iterator[Obstacle]:
    mine = list(given.macs(options))
    if not mine:
        return
    taken = {mac: f"this host's {device}" for mac, device in _host_macs().items()}
    for name, arguments in arrival.neighbours.items():
        if name != arrival.spec.name:
            for mac in given.macs(list(given.options(arguments))):
                taken.setdefault(mac, f"the machine {name}")
    free = _free_mac({*taken, *mine})
    for mac in mine:
        if mac in taken:
            yield found(
                "network.mac-taken",
                f"its hardware address {mac} is that of {taken[mac]} here",
                f"give it another one: stop it, write mac={free} for that card in its "
                "arguments, and start it",
                setting="arguments",
                mac=mac,
                free=free,
            )


def _host_macs() -> dict[str, str]:
    nothing = "00:00:00:00:00:00"
    return {mac: name for mac, name in _networks.hardware_addresses().items() if mac != nothing}


def _free_mac(taken: set[str]) -> str:
    """An address of the range that QEMU's makers gave away (52:54:00) and nobody here has."""
    number = 0x525400000001
    while (mac := ":".join(re.findall("..", f"{number:012x}"))) in taken:
        number += 1
    return mac


def _about_tpm(name: str, path: str) -> Iterator[Obstacle]:
    if _answers(path):
        return
    folder = f"/var/lib/novacron-tpm/{name}"
    start = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}"]
    start += ["--ctrl", f"type=unixio,path={path}", "--daemon"]
    command = f"mkdir -p {shlex.quote(folder)} && {shlex.join(start)}"
    yield found(
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


def _about_locked_memory(arrival: Candidate) -> Iterator[Obstacle]:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    needed = arrival.spec.memory_bytes + (512 << 20)  # QEMU's own, with emulation's code
    if limit == resource.RLIM_INFINITY or limit >= needed or _may_lock():
        return
    command = ["prlimit", "--pid", str(os.getpid()), f"--memlock={needed}:{needed}"]
    yield found(
        "memory.lock-limit",
        f"it keeps its memory locked, and this node may lock {mib(limit)} only",
        f"raise the limit of the node: {shlex.join(command)}, and LimitMEMLOCK= of its service",
        run=command,
        needed_bytes=needed,
        limit_bytes=limit,
    )


def _may_lock() -> bool:
    """Whether this process has CAP_IPC_LOCK, by which there is no limit."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return False
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return bool(found and int(found[1], 16) & 1 << 14)


def _about_memory_file(memory: given.MemoryFile) -> Iterator[Obstacle]:
    if memory.huge:
        free = _free_huge_pages(memory.page_bytes)
        pages = -(-memory.size_bytes // memory.page_bytes)
        if free < pages:
            file = f"/sys/kernel/mm/hugepages/hugepages-{memory.page_bytes >> 10}kB/nr_hugepages"
            yield found(
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
        yield found(
            "memory.no-folder",
            f"it takes memory from {folder}, which is not there on this node",
            f"make it, or mount a hugetlbfs there: mount -t hugetlbfs none {folder}",
            path=str(folder),
        )
        return
    pages_left = os.statvfs(folder)
    left = pages_left.f_bavail * pages_left.f_frsize
    if left < memory.size_bytes:
        yield found(
            "memory.no-huge-pages",
            f"it takes {mib(memory.size_bytes)} of memory from {folder}, which has {mib(left)}",
            "reserve more huge pages for it (vm.nr_hugepages), or enlarge it",
            path=str(folder),
            needed=memory.size_bytes,
            free=left,
        )


def _free_huge_pages(page_bytes: int) -> int:
    path = f"/sys/kernel/mm/hugepages/hugepages-{page_bytes >> 10}kB/free_hugepages"
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return 0
