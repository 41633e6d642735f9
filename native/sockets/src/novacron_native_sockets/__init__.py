"""TCP sockets for transports: mechanism without policy. See the README."""

from __future__ import annotations

from novacron_native_sockets._address import format_address, parse_address
from novacron_native_sockets._errors import Errors
from novacron_native_sockets._info import (
    BbrInfo,
    TcpInfo,
    bbr_info,
    congestion_control,
    restart_congestion_control,
    tcp_info,
)
from novacron_native_sockets._streams import (
    Options,
    TcpListener,
    TcpStream,
    Wrap,
    available,
    connect,
    hold_unsent,
    listen,
    pace,
)

__all__ = [
    "BbrInfo",
    "Errors",
    "Options",
    "TcpInfo",
    "TcpListener",
    "TcpStream",
    "Wrap",
    "available",
    "bbr_info",
    "congestion_control",
    "connect",
    "format_address",
    "hold_unsent",
    "listen",
    "pace",
    "parse_address",
    "restart_congestion_control",
    "tcp_info",
]
