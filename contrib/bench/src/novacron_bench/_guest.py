"""The benchmark's guest: a distribution's kernel, busybox and an agent that beats and works."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from attrs import field, frozen, validators
from novacron import ConfigError
from novacron_machine_qemu.guest import cpio_archive, find_busybox, find_kernel, find_modules

from novacron_bench._disk import Disk, cache_dir

_FOLDER: Final = stat.S_IFDIR | 0o755
_PROGRAM: Final = stat.S_IFREG | 0o755
_FLAGS: Final = ("-O2", "-static", "-Wall")
BEAT_MS: Final = 5


@frozen(kw_only=True)
class Workload:
    """What a guest does while it moves.

    Attributes:
        name: As the command line names it.
        title: For people: what it stands for.
        runs: What the agent runs: ``idle``, ``writer``, ``kv``, ``thrash``, ``files``, or the name
            of a script among ``scripts``.
        rate: MB/s of memory that it makes dirty, where it can be told a rate.
        set_mib: The memory that it writes to.
        scripts: Further shell scripts for the guest, by name; busybox runs them, and ``$device`` is
            the disk.
    """

    name: str = field(validator=validators.matches_re(r"[a-z][a-z0-9-]{0,30}"))
    title: str
    runs: str = field(validator=validators.matches_re(r"[a-z][a-z0-9-]{0,30}"))
    rate: float = field(default=2.0, validator=[validators.gt(0), validators.le(1000)])
    set_mib: int = field(default=64, validator=[validators.ge(1), validators.le(1 << 14)])
    scripts: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class Guest:
    """How to start a guest.

    Attributes:
        memory_bytes: Its memory.
        kernel, initrd: Files.
        append: The kernel's command line.
        disk: What its page cache is filled with.
    """

    memory_bytes: int
    kernel: Path
    initrd: Path
    append: str
    disk: Disk

    def beating(self, port: Path) -> tuple[str, ...]:
        """QEMU's arguments for the disk and for the port that it beats on, a listening socket."""
        return (
            *("-chardev", f"socket,id=beat,path={port},server=off"),
            *("-serial", "chardev:beat"),
        )


def agent(folder: Path | None = None) -> Path:
    """The guest's agent, compiled when it is first asked for.

    Raises: ConfigError if this host cannot compile it.
    """
    source = resources.files("novacron_bench").joinpath("guest/agent.c").read_bytes()
    made_of = hashlib.sha256(source + " ".join(_FLAGS).encode()).hexdigest()[:16]
    folder = folder or cache_dir()
    path = folder / f"agent-{made_of}"
    if path.exists():
        return path
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    hint = "run scripts/debian-packages, or install gcc and a static C library"
    if compiler is None:
        raise ConfigError("no C compiler for the guest's agent", hint=hint)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"agent-{os.getpid()}"
    try:
        subprocess.run(
            [compiler, *_FLAGS, "-o", str(unfinished), "-x", "c", "-"],
            input=source,
            check=True,
            capture_output=True,
            timeout=120,
        )
        unfinished.replace(path)
    except subprocess.CalledProcessError as failed:
        said = failed.stderr.decode(errors="replace").strip()
        raise ConfigError(f"the guest's agent cannot be compiled: {said}", hint=hint) from failed
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def build_initrd(workloads: Sequence[Workload]) -> bytes:
    """The initramfs, with the scripts of all workloads."""
    package = resources.files("novacron_bench").joinpath("guest")
    entries: list[tuple[str, int, bytes]] = [
        (name, _FOLDER, b"")
        for name in ("bin", "dev", "proc", "tmp", "modules", "workloads", "etc")
    ]
    for number, module in enumerate(find_modules(find_kernel())):
        entries.append((f"modules/{number}-{module.name}", _PROGRAM, module.read_bytes()))
    scripts: dict[str, str] = {}
    for workload in workloads:
        scripts.update(workload.scripts)
    for name, text in sorted(scripts.items()):
        entries.append((f"workloads/{name}", _PROGRAM, text.encode()))
    entries.append(("bin/busybox", _PROGRAM, find_busybox().read_bytes()))
    entries.append(("agent", _PROGRAM, agent().read_bytes()))
    entries.append(("init", _PROGRAM, package.joinpath("init").read_bytes()))
    return gzip.compress(cpio_archive(entries), compresslevel=6, mtime=0)


def built_in_workloads() -> tuple[Workload, ...]:
    """The five guests of the benchmark, and the plain writer."""
    compiles = resources.files("novacron_bench").joinpath("guest/workloads/compile").read_text()
    return (
        Workload(name="idle", title="nothing to do", runs="idle"),
        Workload(name="writer", title="whole pages of random bytes", runs="writer", set_mib=8),
        Workload(
            name="files", title="file server: the page cache turns over", runs="files", rate=4
        ),
        Workload(name="kv", title="key-value store under write load", runs="kv", rate=2),
        Workload(
            name="compile", title="compile job", runs="compile", scripts={"compile": compiles}
        ),
        Workload(name="thrash", title="a word here and there, everywhere", runs="thrash", rate=40),
    )


# Of a guest's memory: what the kernel, its tables and the workload need, and what stays free, so
# that about a fifth of the pages is zero as on most machines.
_PARTS: Final = {"disk": 0.58, "heap": 0.125}


def build_guest(
    folder: Path,
    workload: Workload,
    workloads: Sequence[Workload],
    *,
    memory_bytes: int,
    seed: int = 1,
) -> Guest:
    """Put a guest's files into a folder.

    Args:
        seed: What differs between two guests of the same image: heap, and what is written.
    Raises: ConfigError or NotFound if this host lacks something; the hint is the cure.
    """
    from novacron_bench._disk import disk

    kernel = find_kernel()
    initrd = folder / "initrd.gz"
    if not initrd.exists():
        folder.mkdir(parents=True, exist_ok=True)
        initrd.write_bytes(build_initrd(workloads))
    mib = memory_bytes >> 20
    heap = int(mib * _PARTS["heap"])
    append = (
        "console=ttyS0 quiet loglevel=0 panic=-1 mitigations=off random.trust_cpu=on "
        f"workload={workload.runs} rate={workload.rate:g} set={workload.set_mib} heap={heap} "
        f"seed={seed} beat={BEAT_MS}"
    )
    image = disk(int(mib * _PARTS["disk"]) << 20)
    return Guest(memory_bytes=memory_bytes, kernel=kernel, initrd=initrd, append=append, disk=image)
