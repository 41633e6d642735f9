"""The authority's office: gives certificates over the network, to nodes and to who has a token.

A node of the fleet renews its own certificate over a channel. A host that has none yet is let in by
another door: a port of its own, where TLS proves the office alone, and the one thing that can be
done is to show a token and a request.

What is asked is a frame with JSON, ``{"number", "proof", "request"}``, or for a renewal the request
alone. The answer is a frame: 0 and a bundle (PEM), or 1 and why not.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from novacron import NovacronError, ProtocolError, Untrusted

from novacron_security_tls import _frames, _pem
from novacron_security_tls._authority import Authority
from novacron_security_tls._engine import Engine, new_context, use_identity
from novacron_security_tls._enrolment import Trust
from novacron_security_tls._names import named_request
from novacron_security_tls._tls import TlsStream, shake_hands
from novacron_security_tls._tokens import Tokens

if TYPE_CHECKING:
    from cryptography import x509
    from novacron import SecureStream, Stream

_log = logging.getLogger(__name__)

RENEWAL: Final = "renew/1"
REQUEST_BYTES_MAX: Final = 32 << 10
TIMEOUT_S: Final = 10.0
GRANTED: Final = b"\x00"
DENIED: Final = b"\x01"


class Office:
    """What is done at both doors. Its calls block, in threads of their own."""

    def __init__(self, authority: Authority, life: timedelta) -> None:
        self._authority = authority
        self._life = life
        self._tokens = Tokens(authority.folder)

    def renew(self, stream: SecureStream) -> None:
        """A node of the fleet asks for its next certificate."""
        node = stream.peer.node
        asked = _frames.receive(stream, REQUEST_BYTES_MAX)
        self._answer(stream, lambda: self._grant(node, asked, "renewed"))

    def enrol(self, stream: TlsStream) -> None:
        """Somebody shows a token."""
        try:
            form = json.loads(_frames.receive(stream, REQUEST_BYTES_MAX))
            number, proof = str(form["number"]), bytes.fromhex(form["proof"])
            asked = str(form["request"]).encode()
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ProtocolError("what it asks for is no enrolment") from error

        def grant() -> bytes:
            now = datetime.now(UTC)
            node = self._tokens.use(number, proof, stream.exported(), asked, now)
            return self._grant(node, asked, "enrolled")

        self._answer(stream, grant)

    def _grant(self, node: str, asked: bytes, what: str) -> bytes:
        request = _pem.parse(asked, "the request").request
        if request is None or named_request(request) != node:
            raise Untrusted(f"the request is not for {node}", reason="wrong-name")
        bundle, issued = self._authority.issue_bundle(node, life=self._life, request=request)
        _log.warning("%s %s until %s", what, node, issued.not_after.isoformat())
        return bundle.dump()

    def _answer(self, stream: Stream, grant: Any) -> None:
        try:
            answer = GRANTED + grant()
        except NovacronError as error:
            _log.warning("%s gets no certificate: %s", stream.peer_address, error.message)
            answer = DENIED + error.message.encode()[:1024]
        _frames.send(stream, answer)
        stream.finish()


def receive_stranger(stream: Stream, trust: Trust) -> TlsStream:
    """TLS that proves this node, with its authority's certificate, and asks for no proof."""
    context = new_context()
    use_identity(context, trust.certificate, str(trust.key_file))
    untyped: Any = context
    untyped.add_extra_chain_cert(trust.ca)
    engine = Engine(context, server=True)
    shake_hands(stream, engine)
    return TlsStream(stream, engine, None, None)


def certificates(engine: Engine) -> list[x509.Certificate]:
    """What the peer has shown, its own certificate first."""
    chain = engine.connection.get_peer_cert_chain() or []
    return [certificate.to_cryptography() for certificate in chain]
