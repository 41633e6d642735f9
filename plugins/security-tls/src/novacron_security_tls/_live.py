"""The streams that are open now: trust that ends, ends them too."""

from __future__ import annotations

import logging
import threading
import weakref
from datetime import datetime
from typing import TYPE_CHECKING

from novacron_security_tls._enrolment import is_signed_by

if TYPE_CHECKING:
    from cryptography import x509

    from novacron_security_tls._enrolment import Trust
    from novacron_security_tls._tls import TlsStream

_log = logging.getLogger(__name__)


def distrusted(trust: Trust, certificate: x509.Certificate, now: datetime) -> str:
    """Why a peer that showed this certificate would not be let in now; empty if it would."""
    if certificate.serial_number in trust.revoked:
        return "its certificate was revoked"
    if not is_signed_by(certificate, trust.ca):
        return "its certificate is not from the authority of this node"
    if now > certificate.not_valid_after_utc:
        return f"its certificate expired at {certificate.not_valid_after_utc:%F %R} UTC"
    return ""


class LiveStreams:
    """All streams that a provider has made and that are in use still."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: weakref.WeakSet[TlsStream] = weakref.WeakSet()
        self._looked_by: Trust | None = None

    def add(self, stream: TlsStream) -> None:
        with self._lock:
            self._streams.add(stream)

    def __len__(self) -> int:
        with self._lock:
            return sum(not stream.closed for stream in self._streams)

    def review(self, trust: Trust, now: datetime) -> int:
        """Cut every stream whose peer would not be let in now; how many that were."""
        with self._lock:
            changed, self._looked_by = trust is not self._looked_by, trust
            ones = [
                stream
                for stream in self._streams
                if not stream.closed
                and stream.peer_certificate is not None
                # As long as trust is what it was, only time ends it.
                and (changed or now > stream.peer_certificate.not_valid_after_utc)
            ]
        cut = 0
        for stream in ones:
            assert stream.peer_certificate is not None
            why = distrusted(trust, stream.peer_certificate, now)
            if why:
                _log.warning("cut off %s at %s: %s", stream.peer.node, stream.peer_address, why)
                stream.cut(f"{stream.peer.node} is trusted no longer: {why}")
                cut += 1
        return cut

    def cut_all(self, why: str) -> int:
        """This node itself has no identity any more."""
        with self._lock:
            open_ones = [stream for stream in self._streams if not stream.closed]
        for stream in open_ones:
            stream.cut(why)
        return len(open_ones)
