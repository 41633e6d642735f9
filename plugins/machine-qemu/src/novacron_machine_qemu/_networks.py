"""This host's networks, as far as a machine needs to know them: from /sys, /proc and sockets."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_DEVICES: Final = Path("/sys/class/net")
_SIOCGIFADDR: Final = 0x8915
_SIOCGIFNETMASK: Final = 0x891B
HELPER: Final = Path("/usr/lib/qemu/qemu-bridge-helper")
HELPER_RULES: Final = Path("/etc/qemu/bridge.conf")
DEFAULT_SCRIPT: Final = Path("/etc/qemu-ifup")


def exists(device: str) -> bool:
    return _is_name(device) and (_DEVICES / device).exists()


def is_bridge(device: str) -> bool:
    return exists(device) and (_DEVICES / device / "bridge").is_dir()


def bridges() -> list[str]:
    """All bridges of this host."""
    with contextlib.suppress(OSError):
        return sorted(name for name in os.listdir(_DEVICES) if is_bridge(name))
    return []


def hardware_addresses() -> dict[str, str]:
    """The devices of this host, by hardware address."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for device in sorted(os.listdir(_DEVICES)):
            with contextlib.suppress(OSError):
                found[(_DEVICES / device / "address").read_text().strip().lower()] = device
    return found


def subnets(device: str) -> tuple[str, ...]:
    """The networks that a device has an address in, link-local ones left out."""
    if not exists(device):
        return ()
    found = {str(ipaddress.ip_network(text, strict=False)) for text in _addresses(device)}
    return tuple(sorted(found))


def _addresses(device: str) -> Iterator[str]:
    request = struct.pack("256s", device.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
        address = fcntl.ioctl(asking, _SIOCGIFADDR, request)[20:24]
        mask = fcntl.ioctl(asking, _SIOCGIFNETMASK, request)[20:24]
        yield f"{socket.inet_ntoa(address)}/{socket.inet_ntoa(mask)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            address6, _, prefix, scope, _, name = line.split()
            if name == device and scope == "00":
                yield f"{ipaddress.IPv6Address(int(address6, 16))}/{int(prefix, 16)}"


def why_not_bindable(protocol: str, address: str, port: int) -> str:
    """Why a port cannot be taken on this host now, empty if it can.

    Tried, and let go at once: nobody can have connected.
    """
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with contextlib.closing(socket.socket(socket.AF_INET, kind)) as trying:
        trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trying.bind((address or "0.0.0.0", port))
        except OverflowError:
            return "there is no such port"
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return f"this host has no address {address}"
            return (error.strerror or str(error)).lower()
    return ""


def helper_allows(bridge: str, rules: Path | None = None) -> bool:
    """Whether QEMU's bridge helper joins machines to a bridge: some rule of its file must allow it,
    and none deny it."""
    words = {verb for verb, name in _rules(rules or HELPER_RULES) if name in (bridge, "all")}
    return words == {"allow"}


def _rules(path: Path, depth: int = 0) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        match line.partition("#")[0].split():
            case ["include", other] if depth < 4:
                yield from _rules(Path(other), depth + 1)
            case ["allow" | "deny" as verb, name]:
                yield verb, name


def _is_name(device: str) -> bool:
    # Linux' own rule (dev_valid_name): such a name is no path to somewhere else.
    return 0 < len(device) < 16 and device not in (".", "..") and not set(device) & set("/: \t\n\0")
