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

from novacron_security_tls._lists import PROTOCOL, answer, tell

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
        from novacron_security_tls._live import LiveStreams

        self._settings: Settings = settings
        self._folder = TrustFolder(node.state_dir, node.name, clock=clock)
        self._lock = threading.Lock()
        self._context: tuple[Trust, SSL.Context] | None = None
        self._clock = clock
        self._node = node
        self._live = LiveStreams()
        # Called with a peer's name and the number of the list that it has, when it said so.
        self.on_list: Callable[[str, int], None] = lambda peer, number: None
        if node.channels is not None:
            node.channels.serve(PROTOCOL, self._answer)

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
            tls = protect(stream, trust, context, node, self._settings.handshake_timeout_s)
            self._live.add(tls)
            # Whoever was revoked while the handshake went on was not there to be cut off.
            self.review()
            return tls
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

    # While streams are open.

    def review(self) -> int:
        """Cut off every peer that would not be let in now; how many streams that were.

        If this node itself has no identity that holds, all of them.
        """
        try:
            trust = self._folder.current()
        except Untrusted as error:
            # Files that cannot be read for a moment are no reason to break off a move.
            count = self._live.cut_all(error.message) if error.facts.get("ended") else 0
            if count:
                _log.error("%s; %d streams were cut off", error.message, count)
            return count
        return self._live.review(trust, self._clock())

    def current_trust(self) -> Trust:
        """Who this node is and whom it believes. Raises Untrusted."""
        return self._folder.current()

    def due(self) -> bool:
        """Whether this node's certificate should be renewed now. Raises Untrusted."""
        from novacron_security_tls._enrolment import renew_before

        certificate = self._folder.current().certificate
        return certificate.not_valid_after_utc - self._clock() < renew_before(certificate)

    def renew(self, peer: str) -> None:
        """Have the authority's office at a peer renew this node's certificate. Blocks.

        Raises: NovacronError, ProtocolError; the old certificate stays in use then.
        """
        from novacron_security_tls._authority import algorithm_of
        from novacron_security_tls._office import RENEWAL
        from novacron_security_tls._visit import renew

        assert self._node.channels is not None
        trust = self._folder.current()
        algorithm = algorithm_of(trust.certificate)
        stream = self._node.channels.open(peer, RENEWAL)
        try:
            renew(stream, trust, self._node.state_dir, algorithm)
        finally:
            stream.close()
        _log.warning("the certificate of %s was renewed by %s", trust.identity.node, peer)

    def revocations(self) -> tuple[int, bytes]:
        """The number of the revocation list in force, and the list (DER). Raises Untrusted."""
        trust = self._folder.current()
        return trust.list_number, trust.list_der

    def take(self, data: bytes) -> int:
        """Put a newer revocation list in force, whoever brought it: the authority has signed it.

        Raises: Untrusted, ConfigError if it is not the authority's; nothing has changed then.
        """
        before, _ = self.revocations()
        self._folder.take_list(data)
        number, _ = self.revocations()
        if number > before:
            _log.warning("the revocation list %d is in force", number)
            self.review()
        return number

    def tell(self, peer: str) -> int:
        """Bring this node and a peer to the same list; its number. Blocks; raises NovacronError or
        ProtocolError."""
        assert self._node.channels is not None
        stream = self._node.channels.open(peer, PROTOCOL)
        try:
            number = tell(stream, self)
        finally:
            stream.close()
        self.on_list(peer, number)
        return number

    def _answer(self, stream: SecureStream) -> None:
        self.on_list(stream.peer.node, answer(stream, self))
