"""The TLS provider. What it works with is imported when it is made: each command loads this."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen
from attrs.validators import gt
from novacron import Identity, NodeFacts, SecureStream, Stream, TransportError, Untrusted

if TYPE_CHECKING:
    from OpenSSL import SSL

    from novacron_security_tls._enrolment import Trust
    from novacron_security_tls._tls import TlsStream

_log = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


@frozen(kw_only=True)
class Settings:
    """How streams are protected. The section is ``[security.tls]``.

    Attributes:
        handshake_timeout_s: A peer that has not proved its identity within this time is left.
    """

    handshake_timeout_s: float = field(default=10.0, validator=gt(0))


class TlsSecurity:
    """The provider ``tls``."""

    name: ClassVar[str] = "tls"
    Settings: ClassVar[type] = Settings

    def __init__(
        self, settings: Any, node: NodeFacts, *, clock: Callable[[], datetime] = utc_now
    ) -> None:
        from novacron_security_tls._enrolment import TrustFolder

        self._settings: Settings = settings
        self._folder = TrustFolder(node.state_dir, node.name, clock=clock)
        self._lock = threading.Lock()
        self._context: tuple[Trust, SSL.Context] | None = None

    def identity(self) -> Identity:
        return self._folder.current().identity

    def client(self, stream: Stream, node: str) -> SecureStream:
        return self._protect(stream, node)

    def server(self, stream: Stream) -> SecureStream:
        return self._protect(stream, None)

    def _protect(self, stream: Stream, node: str | None) -> TlsStream:
        from novacron_security_tls._tls import protect

        try:
            trust, context = self._trust()
            return protect(stream, trust, context, node, self._settings.handshake_timeout_s)
        except (Untrusted, TransportError) as error:
            stream.close()
            if node is None:
                _log.warning("refused %s: %s", stream.peer_address, error.message)
            raise
        except BaseException:
            stream.close()
            raise

    def _trust(self) -> tuple[Trust, SSL.Context]:
        from novacron_security_tls._tls import make_context

        trust = self._folder.current()
        with self._lock:
            if self._context is None or self._context[0] is not trust:
                self._context = trust, make_context(trust)
            return self._context
