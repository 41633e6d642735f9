"""The provider ``tcp``: settings, and what it makes of them; the sockets are another package's."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from attrs import asdict, evolve, field, frozen
from attrs.validators import ge, gt
from novacron import ConfigError, Listener, NodeFacts, Stream, TransportError
from novacron_native_sockets import Errors, Options, available, connect, listen
from novacron_native_sockets import parse_address as parse_any_address

ERRORS: Final = Errors(TransportError, ConfigError)


@frozen(kw_only=True)
class Settings:
    """How streams behave. The section is ``[transport.tcp]``.

    Attributes:
        congestion_control: The kernel's algorithm to use, such as ``bbr``; empty leaves the
            system's. One that the kernel does not have is reported in the log, no more.
        max_rate_bytes_s: Pace each stream at most at this rate; 0 is no limit.
        unsent_bytes: How much the kernel may hold of what was sent into a stream but has not left
            the host. Keeps back-pressure honest; 0 leaves the system's.
        send_buffer_bytes: Fixed size of the kernel's buffer; 0 lets it tune itself.
        receive_buffer_bytes: The same for receiving.
        backlog: Connections that may wait to be accepted.
        keepalive_idle_s: A silent path is probed after this long.
        keepalive_interval_s: Time between probes.
        keepalive_probes: Probes without an answer after which the stream is broken.
        unacknowledged_timeout_s: A stream whose peer acknowledges nothing of what was sent for
            this long is broken; 0 leaves the system's (about 15 minutes).
    """

    congestion_control: str = ""
    max_rate_bytes_s: int = field(default=0, validator=ge(0))
    unsent_bytes: int = field(default=1 << 20, validator=ge(0))
    send_buffer_bytes: int = field(default=0, validator=ge(0))
    receive_buffer_bytes: int = field(default=0, validator=ge(0))
    backlog: int = field(default=128, validator=gt(0))
    keepalive_idle_s: int = field(default=15, validator=gt(0))
    keepalive_interval_s: int = field(default=5, validator=gt(0))
    keepalive_probes: int = field(default=3, validator=gt(0))
    unacknowledged_timeout_s: float = field(default=30.0, validator=ge(0))


def parse_address(address: str, *, any_port: bool = False) -> tuple[str, int]:
    """The host (without brackets) and the port of an address. Raises: ConfigError: It is none."""
    return parse_any_address(address, ERRORS, any_port=any_port)


class TcpTransport:
    """The provider ``tcp``."""

    name: ClassVar[str] = "tcp"
    Settings: ClassVar[type] = Settings

    def __init__(self, settings: Any, node: NodeFacts) -> None:
        if settings.congestion_control:
            settings = evolve(settings, congestion_control=available(settings.congestion_control))
        self._options = Options(**asdict(settings))

    def connect(self, address: str, timeout_s: float) -> Stream:
        return connect(address, timeout_s, self._options, ERRORS)

    def listen(self, address: str) -> Listener:
        return listen(address, self._options, ERRORS)
