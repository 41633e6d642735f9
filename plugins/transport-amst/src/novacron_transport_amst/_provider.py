"""The provider ``amst``: settings, addresses, and one steering for each link."""

from __future__ import annotations

import ipaddress
import itertools
import socket
from pathlib import Path
from typing import Any, ClassVar, Final

from attrs import field, frozen
from attrs.validators import ge, gt, le
from novacron import ConfigError, Listener, NodeFacts, Steering, Stream, TransportError
from novacron_native_sockets import Errors, Options, available, connect, listen

from novacron_transport_amst._count import Limits
from novacron_transport_amst._gauge import AmstStream
from novacron_transport_amst._shares import Shares
from novacron_transport_amst._steering import Pilot

ERRORS: Final = Errors(TransportError, ConfigError)
# Before anything was measured: enough to keep a gigabit busy between two looks.
_UNSENT_AT_FIRST: Final = 128 << 10
# Linux's own default, where it does not say.
_TCP_WMEM: Final = Path("/proc/sys/net/ipv4/tcp_wmem")
_WMEM_USUAL: Final = 4 << 20


@frozen(kw_only=True)
class Settings:
    """How links behave. The section is ``[transport.amst]``.

    Attributes:
        congestion_control: ``auto`` takes BBR where the kernel lets us have it, and the system's
            elsewhere; or the name of one.
        streams_min, streams_max: How many streams a link has at least and at the most.
        share_max: The fraction of the measured bottleneck that a link may use.
        rate_bytes_per_s: What all links of this node may send together; 0 is no limit.
        local_addresses: IP addresses of this host to connect from, in turn; empty leaves it to the
            routes. With several, a link has a stream from each.
        unsent_bytes: How much the kernel may hold of what has not left the host, per stream; 0
            follows the rate.
        send_buffer_bytes, receive_buffer_bytes: Fixed sizes of the kernel's buffers; 0 lets it tune
            them, which is nearly always better.
        backlog: Connections that may wait to be accepted.
        keepalive_idle_s, keepalive_interval_s, keepalive_probes: When a silent path is probed, how
            often, and after how many probes without an answer it is broken.
        unacknowledged_timeout_s: A stream whose peer acknowledges nothing for so long is broken.
    """

    congestion_control: str = "auto"
    streams_min: int = field(default=1, validator=[ge(1), le(64)])
    streams_max: int = field(default=16, validator=[ge(1), le(64)])
    share_max: float = field(default=1.0, validator=[gt(0.0), le(1.0)])
    rate_bytes_per_s: int = field(default=0, validator=ge(0))
    local_addresses: list[str] = field(factory=list)
    unsent_bytes: int = field(default=0, validator=ge(0))
    send_buffer_bytes: int = field(default=0, validator=ge(0))
    receive_buffer_bytes: int = field(default=0, validator=ge(0))
    backlog: int = field(default=128, validator=gt(0))
    keepalive_idle_s: int = field(default=10, validator=gt(0))
    keepalive_interval_s: int = field(default=5, validator=gt(0))
    keepalive_probes: int = field(default=3, validator=gt(0))
    unacknowledged_timeout_s: float = field(default=20.0, validator=ge(0))


class AmstTransport:
    """The provider ``amst``."""

    name: ClassVar[str] = "amst"
    Settings: ClassVar[type] = Settings

    def __init__(self, settings: Any, node: NodeFacts) -> None:
        self._settings: Settings = settings
        self._unsent_bytes = settings.unsent_bytes
        wanted = "bbr" if settings.congestion_control == "auto" else settings.congestion_control
        self._options = Options(
            congestion_control=available(wanted) if wanted else "",
            unsent_bytes=settings.unsent_bytes or _UNSENT_AT_FIRST,
            send_buffer_bytes=settings.send_buffer_bytes,
            receive_buffer_bytes=settings.receive_buffer_bytes,
            backlog=settings.backlog,
            keepalive_idle_s=settings.keepalive_idle_s,
            keepalive_interval_s=settings.keepalive_interval_s,
            keepalive_probes=settings.keepalive_probes,
            unacknowledged_timeout_s=settings.unacknowledged_timeout_s,
        )
        if settings.streams_max < settings.streams_min:
            raise ConfigError(
                f"[transport.amst] streams_max {settings.streams_max} is less than streams_min "
                f"{settings.streams_min}",
                hint="raise the one or lower the other",
            )
        for address in settings.local_addresses:
            _check_address(address)
        self._local = itertools.cycle(settings.local_addresses or [""])
        self._shares = Shares(float(settings.rate_bytes_per_s) or None)

    def connect(self, address: str, timeout_s: float) -> Stream:
        return connect(
            address,
            timeout_s,
            self._options,
            ERRORS,
            wrap=self._wrap,
            local_address=next(self._local),
        )

    def listen(self, address: str) -> Listener:
        return listen(address, self._options, ERRORS, wrap=self._wrap)

    def steering(self) -> Steering:
        """What decides for one new link. See `novacron.Steering`."""
        settings = self._settings
        limits = Limits(
            streams_min=max(settings.streams_min, min(len(settings.local_addresses), 64), 1),
            streams_max=max(settings.streams_max, min(len(settings.local_addresses), 64)),
            share_max=settings.share_max,
            stream_bytes=settings.send_buffer_bytes or _kernel_buffer(),
        )
        return Pilot(limits, self._shares)

    def _wrap(self, sock: socket.socket, errors: Errors) -> AmstStream:
        return AmstStream(sock, errors, self._unsent_bytes)


def _kernel_buffer() -> int:
    """What the kernel's tuning lets the send buffer of a stream grow to, in bytes."""
    try:
        return max(int(_TCP_WMEM.read_text().split()[2]), 1)
    except (OSError, ValueError, IndexError):
        return _WMEM_USUAL


def _check_address(address: str) -> None:
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise ConfigError(
            f"[transport.amst] local_addresses: {address!r} is no IP address",
            hint='write the host\'s own addresses, such as ["192.0.2.7", "198.51.100.7"]',
        ) from error
