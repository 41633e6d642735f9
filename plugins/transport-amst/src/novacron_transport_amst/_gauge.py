"""A stream that can be measured and paced."""

from __future__ import annotations

import itertools
import logging
import socket
import time
from typing import Final

from novacron import PathReading
from novacron_native_sockets import (
    Errors,
    TcpStream,
    bbr_info,
    congestion_control,
    hold_unsent,
    pace,
    restart_congestion_control,
    tcp_info,
)

from novacron_transport_amst._search import Search

_log = logging.getLogger(__name__)
# Streams of one link are opened one after the other.
_spreads = itertools.cycle((0.0, 0.5, 0.25, 0.75, 1.0))

# What may wait in the kernel: this long at the pace, but never less or more than these.
UNSENT_S: Final = 0.01
UNSENT_BYTES_MIN: Final = 64 << 10
UNSENT_BYTES_MAX: Final = 4 << 20
# A stream may soon be so much faster than BBR has measured.
OWN_AHEAD: Final = 2.0


class TcpGauge:
    """The gauge of one TCP connection."""

    def __init__(self, stream: TcpStream, congestion: str, unsent_bytes: int) -> None:
        self._stream = stream
        self._congestion = congestion
        self._unsent_bytes = unsent_bytes
        self._search: Search | None = Search(next(_spreads))
        self._paced = False
        self._own_rate = 0.0

    def read(self) -> PathReading:
        with self._stream.socket("measuring") as sock:
            at_s = time.monotonic()
            info = tcp_info(sock)
            bbr = bbr_info(sock) if self._congestion == "bbr" else None
            if bbr is not None:
                self._own_rate = float(bbr.rate)
                self._keep_searching(sock, at_s, bbr.searching, info.repairing)
        return PathReading(
            at_s=at_s,
            rtt_s=info.rtt_s,
            min_rtt_s=bbr.min_rtt_s if bbr and bbr.min_rtt_s else info.min_rtt_s,
            rate_bytes_per_s=float(bbr.rate if bbr else info.delivery_rate),
            sent_bytes=info.sent_bytes,
            resent_bytes=info.resent_bytes,
            delivered_bytes=info.arrived_bytes,
            unsent_bytes=info.unsent_bytes,
            lost=info.lost,
            reordered=info.reordered,
            congestion_control=self._congestion,
            starved=info.app_limited,
        )

    def _keep_searching(
        self, sock: socket.socket, now_s: float, searching: bool, repairing: bool
    ) -> None:
        if self._search is None:
            return
        if self._search.over(now_s, searching=searching, paced=self._paced, repairing=repairing):
            try:
                restart_congestion_control(sock)
            except OSError as error:
                self._search = None  # it would fail again
                _log.warning("the search of a stream cannot be begun anew: %s", error)

    def pace(self, bytes_per_s: int | None) -> None:
        with self._stream.socket("pacing") as sock:
            pace(sock, bytes_per_s)
            self._paced = bytes_per_s is not None
            if not self._unsent_bytes:
                rate = bytes_per_s if bytes_per_s is not None else UNSENT_BYTES_MAX / UNSENT_S
                if self._own_rate:
                    # What a slow stream holds is waited for by what the others have brought.
                    rate = min(rate, OWN_AHEAD * self._own_rate)
                size = min(max(int(rate * UNSENT_S), UNSENT_BYTES_MIN), UNSENT_BYTES_MAX)
                hold_unsent(sock, size)


class AmstStream(TcpStream):
    """One TCP connection with its gauge."""

    def __init__(self, sock: socket.socket, errors: Errors, unsent_bytes: int = 0) -> None:
        super().__init__(sock, errors)
        self.gauge = TcpGauge(self, congestion_control(sock), unsent_bytes)
