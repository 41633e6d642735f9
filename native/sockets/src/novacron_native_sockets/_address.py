"""Addresses as users write them: ``host:port`` and ``[IPv6]:port``."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from novacron_native_sockets._errors import Errors

_HINT: Final = 'write "host:port", "192.0.2.7:7000" or "[2001:db8::7]:7000"'
_PORT: Final = re.compile(r"[0-9]{1,5}")
# What a resolver may be asked: letters, digits, hyphens, dots (and _ that some sites use).
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")


def parse_address(address: str, errors: Errors, *, any_port: bool = False) -> tuple[str, int]:
    """The host (without brackets) and the port of an address.

    Args:
        any_port: Port 0 is good too; it asks the system for a free one.

    Raises:
        errors.wrong: It is none.
    """

    def wrong(why: str) -> Exception:
        return errors.wrong(f"{address!r} is no TCP address: {why}", hint=_HINT, address=address)

    host, colon, port_text = address.rpartition(":")
    if not colon:
        raise wrong("it has no port")
    if not _PORT.fullmatch(port_text):
        raise wrong(f"its port {port_text!r} is not a number")
    port = int(port_text)
    if port > 65535 or (port == 0 and not any_port):
        raise wrong(f"its port {port} is not between {0 if any_port else 1} and 65535")
    if host.startswith("[") or host.endswith("]"):
        inner = host.removeprefix("[").removesuffix("]")
        if host != f"[{inner}]":
            raise wrong("its brackets do not match")
        try:
            ipaddress.IPv6Address(inner)
        except ValueError as error:
            raise wrong(f"{inner!r} is no IPv6 address") from error
        return inner, port
    if ":" in host:
        raise wrong("an IPv6 address stands in brackets")
    if not _HOST.fullmatch(host):
        raise wrong(f"{host!r} is no host name" if host else "it has no host")
    return host, port


def format_address(sockname: tuple[object, ...]) -> str:
    """What the socket calls an address, in the form that `parse_address` takes."""
    host, port = str(sockname[0]), sockname[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
