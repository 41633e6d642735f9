"""What Linux tells of a connection.

The layouts are those of ``struct tcp_info`` in linux/tcp.h and ``struct tcp_bbr_info`` in
linux/inet_diag.h, which only grow at their end: a shorter answer comes from an older kernel.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from attrs import frozen

_TCP_CC_INFO: Final = getattr(socket, "TCP_CC_INFO", 26)
_INFO: Final = struct.Struct("=8B24I4Q6I4Q2I2Q4I")
_BBR: Final = struct.Struct("=5I")
# The bit of the last of the eight first bytes that says so of the delivery rate.
_APP_LIMITED: Final = 1
# The second of these bytes is the state of repair: from this on, lost packets are sent again.
_RECOVERY: Final = 3
# BBR's gains are in 256ths. That of its window is 0 before the first acknowledgement and 2.89 while
# it searches; later it is 2, or 1.
_GAIN: Final = 256
_GAIN_SEARCHING: Final = 2.5


@frozen(kw_only=True)
class TcpInfo:
    """Figures of one connection, as of now.

    Attributes:
        rtt_s, min_rtt_s: Smoothed, and the least of the last minutes.
        delivery_rate: Bytes per second, as the latest acknowledgements show it.
        repairing: Whether packets that were lost are being sent again.
        app_limited: Whether that rate is what we sent rather than what the path takes.
        pacing_rate: Bytes per second at which the kernel sends.
        congestion_window: Packets; ``segment_bytes`` each.
        unacknowledged: Packets on their way.
        sent_bytes, resent_bytes, unsent_bytes: Payload.
        arrived_bytes: The same, what came after a gap included.
        lost: Packets sent again.
        reordered: Times that packets were seen to arrive out of order.
    """

    rtt_s: float
    min_rtt_s: float
    delivery_rate: int
    repairing: bool
    app_limited: bool
    pacing_rate: int
    congestion_window: int
    segment_bytes: int
    unacknowledged: int
    sent_bytes: int
    resent_bytes: int
    arrived_bytes: int
    unsent_bytes: int
    lost: int
    reordered: int


@frozen(kw_only=True)
class BbrInfo:
    """BBR's model of the path.

    Attributes:
        rate: Bytes per second.
        min_rtt_s: The round trip without queues; 0 while none was measured.
        searching: Whether it still doubles its rate each round trip.
    """

    rate: int
    min_rtt_s: float
    searching: bool


def tcp_info(sock: socket.socket) -> TcpInfo:
    """Raises: OSError; also for a kernel that tells less than is needed (before 5.5)."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    if len(raw) < _INFO.size:
        raise OSError(f"the kernel tells {len(raw)} bytes of a connection, not {_INFO.size}")
    f = _INFO.unpack(raw)
    return TcpInfo(
        rtt_s=f[23] / 1e6,
        min_rtt_s=f[39] / 1e6,
        delivery_rate=f[42],
        repairing=f[1] >= _RECOVERY,
        app_limited=bool(f[7] & _APP_LIMITED),
        pacing_rate=f[32],
        congestion_window=f[26],
        segment_bytes=f[10],
        unacknowledged=f[12],
        sent_bytes=f[48],
        resent_bytes=f[49],
        arrived_bytes=f[34] + f[13] * f[10],
        unsent_bytes=f[38],
        lost=f[31],
        reordered=f[51],
    )


def bbr_info(sock: socket.socket) -> BbrInfo | None:
    """None if the connection does not use BBR. Raises: OSError."""
    if congestion_control(sock) != "bbr":
        return None
    raw = sock.getsockopt(socket.IPPROTO_TCP, _TCP_CC_INFO, 64)
    if len(raw) < _BBR.size:
        return None
    low, high, min_rtt_us, _, window_gain = _BBR.unpack(raw[: _BBR.size])
    # All ones while it has measured nothing.
    known = min_rtt_us != 2**32 - 1
    return BbrInfo(
        rate=low | high << 32,
        min_rtt_s=min_rtt_us / 1e6 if known else 0.0,
        searching=not window_gain or window_gain > _GAIN_SEARCHING * _GAIN,
    )


def congestion_control(sock: socket.socket) -> str:
    """The algorithm's name. Raises: OSError."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return raw.split(b"\0")[0].decode()


def restart_congestion_control(sock: socket.socket) -> None:
    """Make the algorithm forget what it has learnt; its window is kept. Raises: OSError.

    Naming the algorithm that is in use does nothing, so another one is named in between.
    """
    name = congestion_control(sock)
    between = b"reno" if name != "reno" else b"cubic"
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, between)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
