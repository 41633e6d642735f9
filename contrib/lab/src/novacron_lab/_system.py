"""Namespaces and devices, made by iproute2."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from novacron import ConfigError, InternalError, NovacronError

_LIMIT_S: Final = 30
_ALLOWED: Final = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
_AVAILABLE: Final = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def require_host() -> None:
    """Raises ConfigError where no lab can be made."""
    if os.geteuid() != 0:
        raise ConfigError("a lab needs root: it makes network namespaces", hint="use sudo")
    if shutil.which("ip") is None:
        raise ConfigError(
            "the command ip is not installed",
            hint="install iproute2 (Debian: apt install iproute2)",
        )


def run(*command: str, typed: str | None = None) -> str:
    """Its output. Raises InternalError that quotes what it said."""
    done = subprocess.run(
        command,
        input=typed,
        stdin=subprocess.DEVNULL if typed is None else None,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
    )
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise InternalError(f"`{' '.join(command[:12])}` failed: {said}", command=list(command))
    return done.stdout


def ip(*arguments: str) -> str:
    return run("ip", *arguments)


def ip_lines(namespace: str, lines: Iterable[str]) -> None:
    """Several commands of ip in one process, inside a namespace."""
    run("ip", "-n", namespace, "-batch", "-", typed="".join(f"{line}\n" for line in lines))


def inside(namespace: str, argv: Sequence[str]) -> list[str]:
    """A command line that runs another one in a namespace."""
    return ["ip", "netns", "exec", namespace, *argv]


def namespaces() -> set[str]:
    """Names of those that are there."""
    folder = Path("/run/netns")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def set_sysctls(namespace: str, settings: dict[str, str]) -> None:
    script = "".join(
        f"printf %s '{value}' > /proc/sys/{key.replace('.', '/')} || exit 1\n"
        for key, value in settings.items()
    )
    run(*inside(namespace, ["sh", "-c", script]))


def congestion_controls() -> list[str]:
    """Those that the kernel has loaded."""
    return _AVAILABLE.read_text().split()


def allow_congestion_control(name: str) -> None:
    """A namespace may only begin with what its host lists as allowed, so that list may grow.

    Raises ConfigError if the kernel does not have it.
    """
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", f"tcp_{name}"], capture_output=True, timeout=_LIMIT_S)
    available = congestion_controls()
    if name not in available:
        raise ConfigError(
            f"this kernel has no congestion control {name!r:.40}",
            hint=f"it has {', '.join(available)}",
        )
    allowed = _ALLOWED.read_text().split()
    if name not in allowed:
        _ALLOWED.write_text(" ".join([*allowed, name]))


def processes(namespace: str) -> list[int]:
    """Those that run in a namespace."""
    return [int(word) for word in ip("netns", "pids", namespace).split()]


@functools.cache
def has_netem() -> bool:
    """Asked of the kernel, in a namespace that is gone afterwards."""
    if shutil.which("tc") is None:
        return False
    name = f"novacron-netem-{os.getpid()}"
    try:
        ip("netns", "add", name)
    except NovacronError:
        return False
    try:
        run("tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    except NovacronError:
        return False
    finally:
        ip("netns", "delete", name)
    return True
