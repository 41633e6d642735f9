"""Handshakes and the streams that come of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from novacron import (
    Buffer,
    Channel,
    Gauge,
    Identity,
    ProtocolError,
    Stream,
    TransportError,
    Untrusted,
)
from OpenSSL import SSL, crypto

from novacron_security_tls._engine import (
    GROUP,
    Engine,
    new_context,
    use_identity,
    verification_error,
)
from novacron_security_tls._enrolment import Trust, enrol_hint
from novacron_security_tls._names import named_node

# Plain bytes that are encrypted at a time: they and their records stay in the processor's cache.
_PIECE_BYTES: Final = 256 << 10
_RECORD_BYTES: Final = 16 << 10
_RECORD_OVERHEAD: Final = 64
# Two flights of ML-DSA-65 are about 24 KiB; nobody needs more to prove an identity.
_HANDSHAKE_BYTES_MAX: Final = 64 << 10
# What a peer may make us answer (key updates) while we send nothing.
_ANSWER_BYTES_MAX: Final = 16 << 10
# A piece in its records, and the answers before it.
_WIRE_BYTES: Final = (
    _PIECE_BYTES + (_PIECE_BYTES // _RECORD_BYTES + 4) * _RECORD_OVERHEAD + 2 * _ANSWER_BYTES_MAX
)
# The server's first byte, after it has accepted the client's certificate. A TLS 1.3 client ends
# its handshake before that is looked at, and must not take its own end for the server's consent.
_WELCOME: Final = b"\x01"
_EXPORTER: Final = b"EXPORTER-novacron-enrolment"

# OpenSSL's numbers for what is wrong with a certificate.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
# No issuer (2, 20), its signature is not his (7), self-signed (18, 19), alone (21), no CA's (24).
_WRONG_AUTHORITY: Final = frozenset({2, 7, 18, 19, 20, 21, 24})

_NOT_A_NODE: Final = "is it a NovaCron node, and is this the port of its links?"
_OLD: Final = "upgrade cryptography on its host; a proxy in between must pass TLS untouched"
# What OpenSSL says, and what it means here.
_CAUSES: Final = (
    ("unsupported protocol", "old-tls", "it does not speak TLS 1.3", _OLD),
    ("alert protocol version", "old-tls", "it does not speak TLS 1.3", _OLD),
    ("no suitable key share", "weak", f"it does not offer {GROUP}", _OLD),
    ("no shared group", "weak", f"it does not offer {GROUP}", _OLD),
    ("no suitable groups", "weak", f"it does not offer {GROUP}", _OLD),
    ("bad key share", "weak", f"it does not agree on {GROUP}", _OLD),
    (
        "peer did not return a certificate",
        "no-certificate",
        "it has shown no certificate",
        "only enrolled nodes may connect: novacron trust issue",
    ),
    ("wrong version number", "not-tls", "it does not speak TLS", _NOT_A_NODE),
    ("http request", "not-tls", "it speaks HTTP, not TLS", _NOT_A_NODE),
    ("https proxy request", "not-tls", "it speaks HTTP, not TLS", _NOT_A_NODE),
    ("packet length too long", "not-tls", "it does not speak TLS", _NOT_A_NODE),
)


def make_context(trust: Trust) -> SSL.Context:
    context = new_context()
    try:
        use_identity(context, trust.certificate, str(trust.key_file))
    except SSL.Error as error:
        raise Untrusted(
            f"the key in {trust.key_file} cannot be used with the certificate beside it",
            hint=enrol_hint(trust.identity.node),
            reason="own-certificate",
        ) from error
    store = context.get_cert_store()
    assert store is not None
    store.add_cert(crypto.X509.from_cryptography(trust.ca))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _on_certificate)
    return context


def protect(
    stream: Stream, trust: Trust, context: SSL.Context, node: str | None, timeout_s: float
) -> TlsStream:
    """Shake hands as the client that wants ``node``, or as the server if that is None."""
    with deadline(stream, timeout_s):
        return _Handshake(stream, trust, context, node).run()


@contextlib.contextmanager
def deadline(stream: Stream, timeout_s: float) -> Iterator[None]:
    """Close the stream when the time is over: that wakes whatever blocks in it."""
    over = threading.Event()

    def close() -> None:
        over.set()
        stream.close()

    timer = threading.Timer(timeout_s, close)
    timer.daemon = True
    timer.start()
    try:
        yield
    except TransportError as error:
        if over.is_set():
            raise TransportError(
                f"{stream.peer_address} did not complete the handshake within {timeout_s:g} s",
                hint="is it a NovaCron node? if the path is slow, raise handshake_timeout_s",
                reason="silent",
            ) from error
        raise
    finally:
        timer.cancel()
    # The timer may have closed the stream just as the handshake ended.
    if over.is_set():
        raise TransportError(
            f"{stream.peer_address} did not complete the handshake within {timeout_s:g} s",
            reason="silent",
        )


def _on_certificate(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, sound: int
) -> bool:
    """Called by OpenSSL for each certificate of the peer's chain, the authority's first."""
    handshake = connection.get_app_data()
    assert isinstance(handshake, _Handshake)
    try:
        return handshake.check(certificate.to_cryptography(), error, depth, bool(sound))
    except Untrusted as refusal:
        handshake.refusal = refusal
    except Exception as failure:
        # Left to pyOpenSSL, it would be raised in whichever handshake looks next.
        handshake.refusal = handshake.untrusted("unreadable", "its certificate cannot be read")
        handshake.refusal.__cause__ = failure
    return False


def shake_hands(stream: Stream, engine: Engine) -> None:
    """A handshake in which nobody's certificate is looked at: that is left to the caller.

    Raises: SSL.Error, TransportError, ProtocolError.
    """
    room = memoryview(bytearray(_RECORD_BYTES))
    received = 0
    while True:
        done = engine.handshake()
        while count := engine.take(room):
            stream.send((room[:count],))
        if done:
            return
        count = stream.receive_into(room)
        received += count
        if not count or received > _HANDSHAKE_BYTES_MAX:
            raise ProtocolError("it left in the middle of the handshake, or never ends it")
        engine.feed(room[:count])


class _Handshake:
    """One handshake, from the first byte to a stream whose peer is known."""

    def __init__(
        self, stream: Stream, trust: Trust, context: SSL.Context, node: str | None
    ) -> None:
        self._stream = stream
        self._trust = trust
        self._node = node
        self._engine = Engine(context, server=node is None)
        self._engine.connection.set_app_data(self)
        self._room = memoryview(bytearray(_RECORD_BYTES))
        self._received = 0
        self._saw_certificate = False
        self.peer: Identity | None = None
        self.certificate: x509.Certificate | None = None
        self.refusal: Untrusted | None = None

    def run(self) -> TlsStream:
        try:
            while not self._engine.handshake():
                self._flush()
                self._receive()
            self._flush()
            self._check_group()
            if self.peer is None:
                raise self.untrusted("no-certificate", "it has shown no certificate")
            assert self.certificate is not None
            tls = TlsStream(self._stream, self._engine, self.peer, self.certificate)
            if self._node is None:
                tls.send((_WELCOME,))
            else:
                self._await_welcome()
        except SSL.Error as error:
            refusal = self.refusal or self._explain(error)
            if self._saw_certificate and not isinstance(refusal, TransportError):
                self._say_goodbye()
            raise refusal from error
        finally:
            # The context's callback is the only one who looks; end the circle of references.
            self._engine.connection.set_app_data(None)
        return tls

    def untrusted(self, reason: str, why: str, hint: str = "") -> Untrusted:
        return Untrusted(
            f"{self._stream.peer_address} is not trusted: {why}", hint=hint, reason=reason
        )

    def check(self, certificate: x509.Certificate, error: int, depth: int, sound: bool) -> bool:
        """Whether to go on. Raises Untrusted if not."""
        self._saw_certificate = True
        named = named_node(certificate)
        who = f"node {named[1]}" if named else "no node"
        if not sound:
            raise self._explain_certificate(certificate, error, depth, who)
        if depth:
            return True
        self._check_group()
        if named is None:
            raise self.untrusted(
                "name",
                "its certificate names no node",
                "give it one by `novacron trust issue`",
            )
        if named[0] != self._trust.identity.trust_domain:
            raise self.untrusted("name", f"its certificate is for the trust domain {named[0]}")
        if certificate.serial_number in self._trust.revoked:
            raise self.untrusted(
                "revoked",
                f"the certificate of {who} was revoked",
                f"if the node is to come back: novacron trust issue {named[1]}",
            )
        if self._node is not None and named[1] != self._node:
            raise self.untrusted(
                "name",
                f"node {self._node} was wanted, and the certificate names {named[1]}",
                f"correct the address of {self._node} in [peers]",
            )
        self.certificate = certificate
        self.peer = Identity(
            node=named[1],
            trust_domain=named[0],
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        )
        return True

    def _check_group(self) -> None:
        group = self._engine.group()
        if group != GROUP:
            raise self.untrusted("weak", f"it agreed on {group} for the keys; {GROUP} is required")

    def _explain_certificate(
        self, certificate: x509.Certificate, error: int, depth: int, who: str
    ) -> Untrusted:
        whose = f"the certificate of {who}" if depth == 0 else "its authority's certificate"
        renew = "issue it a new one: novacron trust issue, then novacron trust join"
        if error == _EXPIRED:
            return self.untrusted(
                "expired", f"{whose} expired at {certificate.not_valid_after_utc:%F %R} UTC", renew
            )
        if error == _NOT_YET_VALID:
            return self.untrusted(
                "not-yet-valid",
                f"{whose} is not valid before {certificate.not_valid_before_utc:%F %R} UTC",
                "compare the clocks of the two hosts",
            )
        if error in _WRONG_AUTHORITY:
            return self.untrusted(
                "wrong-authority",
                f"{whose} is not from the authority of this node",
                "both nodes need certificates of one authority: novacron trust issue, "
                "then novacron trust join",
            )
        why = verification_error(error)
        return self.untrusted("certificate", f"{whose} does not hold: {why}", renew)

    def _explain(self, error: SSL.Error) -> Untrusted | TransportError:
        reasons = _reasons(error)
        text = "; ".join(reasons) or "no reason given"
        for part, reason, why, hint in _CAUSES:
            if part in text:
                return self.untrusted(reason, why, hint)
        if "alert" in text:
            return self.untrusted(
                "refused-us",
                f"it refused the certificate of this node, {self._trust.identity.node} ({text})",
                f"its log says why; if need be, {enrol_hint(self._trust.identity.node)}",
            )
        if self._engine_began():
            return self.untrusted("protocol", f"it broke the rules of TLS ({text})")
        return self.untrusted("not-tls", f"it does not speak TLS ({text})", _NOT_A_NODE)

    def _engine_began(self) -> bool:
        return self._saw_certificate or self._engine.group() != "none"

    def _flush(self) -> None:
        while count := self._engine.take(self._room):
            self._stream.send((self._room[:count],))

    def _receive(self) -> None:
        count = self._stream.receive_into(self._room)
        if not count:
            if self._saw_certificate or self._received:
                why, hint = "left in the middle of the handshake", "the log of its node says why"
            else:
                why, hint = "left before it said anything", "is it a NovaCron node?"
            raise TransportError(
                f"{self._stream.peer_address} {why}", hint=hint, reason="half-open"
            )
        self._received += count
        if self._received > _HANDSHAKE_BYTES_MAX:
            raise self.untrusted(
                "protocol", f"its handshake is longer than {_HANDSHAKE_BYTES_MAX} bytes"
            )
        self._engine.feed(self._room[:count])

    def _await_welcome(self) -> None:
        welcome = memoryview(bytearray(1))
        while True:
            try:
                self._engine.read(welcome)
            except SSL.WantReadError:
                self._receive()
            except SSL.ZeroReturnError as error:
                raise TransportError(
                    f"{self._stream.peer_address} closed right after the handshake",
                    hint="the log of its node says why",
                    reason="half-open",
                ) from error
            else:
                break
        if welcome.tobytes() != _WELCOME:
            raise self.untrusted("protocol", "it does not say what a NovaCron node says first")

    def _say_goodbye(self) -> None:
        """Let a peer that has shown a certificate know that we refuse it (a TLS alert)."""
        with contextlib.suppress(TransportError):
            self._flush()
            self._stream.finish()


class TlsStream:
    """A stream under TLS. One thread may send while another receives."""

    def __init__(
        self,
        stream: Stream,
        engine: Engine,
        peer: Identity | None,
        certificate: x509.Certificate | None,
    ) -> None:
        self._stream = stream
        self._engine = engine
        self._peer = peer
        self.peer_certificate = certificate
        self._channel = Channel(
            protocol=engine.connection.get_protocol_version_name(),
            cipher=engine.connection.get_cipher_name() or "",
            key_exchange=engine.group(),
        )
        # Around OpenSSL's object only, and never while a thread waits for the stream.
        self._lock = threading.Lock()
        # Records must go out in the order in which they were made.
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._send_room = memoryview(bytearray(_WIRE_BYTES))
        self._receive_room = memoryview(bytearray(_WIRE_BYTES))
        self._closed = False
        self._finished = False
        self._peer_finished = False
        self._broken = ""

    @property
    def peer(self) -> Identity:
        if self._peer is None:
            raise Untrusted(f"{self.peer_address} has not said who it is", reason="no-certificate")
        return self._peer

    def exported(self) -> bytes:
        """32 bytes that both ends of this connection know, and nobody else (RFC 8446, 7.5)."""
        with self._lock:
            return self._engine.connection.export_keying_material(_EXPORTER, 32, b"")

    @property
    def channel(self) -> Channel:
        return self._channel

    @property
    def peer_address(self) -> str:
        return self._stream.peer_address

    @property
    def gauge(self) -> Gauge | None:
        """What measures and paces the stream below, if it has that."""
        return getattr(self._stream, "gauge", None)

    def send(self, buffers: Sequence[Buffer]) -> None:
        with self._sending:
            for piece in _pieces(buffers):
                with self._lock, self._guard("sending to"):
                    if self._finished:
                        raise TransportError(f"the stream to {self.peer_address} was finished here")
                    self._engine.write(piece)
                    # With the lock still held: what is left in there then is answers alone.
                    count = self._engine.take(self._send_room)
                self._stream.send((self._send_room[:count],))

    def receive_into(self, buffer: memoryview) -> int:
        room = memoryview(buffer).cast("B")
        if not room.nbytes:
            raise ValueError("there is no room to receive into")
        with self._receiving:
            received = 0
            while True:
                with self._lock, self._guard("receiving from"):
                    if self._peer_finished:
                        return 0
                    if received:
                        self._engine.feed(self._receive_room[:received])
                    try:
                        return self._engine.read(room)
                    except SSL.ZeroReturnError:
                        self._peer_finished = True
                        return 0
                    except SSL.WantReadError:
                        if self._engine.waiting() > _ANSWER_BYTES_MAX:
                            raise TransportError(
                                f"{self.peer_address} asks for keys again and again",
                                hint="it is no NovaCron node, or somebody is after this one",
                            ) from None
                received = self._stream.receive_into(self._receive_room)
                if not received:
                    raise self._break(
                        f"the stream from {self.peer_address} was cut off: it ended without notice"
                    )

    def finish(self) -> None:
        with self._sending:
            if self._closed:
                return
            with self._lock, self._guard("ending the stream to"):
                if self._finished:
                    return
                self._finished = True
                self._engine.end()
                count = self._engine.take(self._send_room)
            self._stream.send((self._send_room[:count],))
            self._stream.finish()

    def close(self) -> None:
        self._closed = True
        self._stream.close()

    @property
    def closed(self) -> bool:
        return self._closed or bool(self._broken)

    def cut(self, why: str) -> None:
        """End the stream from any thread, since its peer is trusted no longer; calls that block in
        it raise TransportError, and later ones say why."""
        self._break(why)

    @contextlib.contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        """Turn OpenSSL's errors into ours; after one the stream is of no more use."""
        if self._broken:
            raise TransportError(self._broken)
        try:
            yield
        except SSL.Error as error:
            text = "; ".join(_reasons(error)) or "no reason given"
            raise self._break(f"{what} {self.peer_address}: TLS failed: {text}") from error

    def _break(self, message: str) -> TransportError:
        # The first reason is the true one: what fails after it, fails because of it.
        self._broken = self._broken or message
        self._stream.close()
        return TransportError(self._broken, hint="the log of the peer's node may say more")


def _pieces(buffers: Sequence[Buffer]) -> Iterator[memoryview]:
    """The buffers' bytes in runs worth encrypting at once: small ones joined, large ones cut."""
    small: list[memoryview] = []
    size = 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        if size + view.nbytes <= _RECORD_BYTES:
            small.append(view)
            size += view.nbytes
            continue
        if size:
            yield memoryview(b"".join(small))
            small, size = [], 0
        for start in range(0, view.nbytes, _PIECE_BYTES):
            yield view[start : start + _PIECE_BYTES]
    if size:
        yield memoryview(b"".join(small))


def _reasons(error: SSL.Error) -> list[str]:
    """What OpenSSL says for a failure, without its own function names."""
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return [str(entry[2]) for entry in entries if len(entry) == 3 and entry[2]]
