"""A node's side of the office: becoming a node by a token, and renewing what it is."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from novacron import Buffer, ConfigError, ProtocolError, TransportError, Untrusted
from OpenSSL import SSL

from novacron_security_tls import _frames, _pem
from novacron_security_tls._algorithms import ALGORITHMS
from novacron_security_tls._engine import GROUP, Engine, new_context
from novacron_security_tls._enrolment import Trust, install, is_signed_by, request
from novacron_security_tls._files import FILE_BYTES_MAX
from novacron_security_tls._names import named_node
from novacron_security_tls._office import DENIED, GRANTED, TIMEOUT_S, certificates
from novacron_security_tls._pem import Bundle
from novacron_security_tls._tls import TlsStream, deadline, shake_hands
from novacron_security_tls._tokens import Token, fingerprint, prove

if TYPE_CHECKING:
    from novacron import SecureStream

_HINT: Final = "make a new token: novacron trust token"


def enrol(token: Token, state_dir: Path, algorithm: str = "ecdsa-p256") -> Bundle:
    """Make a key here, and have the office give it a certificate by a token.

    Raises: TransportError if the office is not reached, Untrusted if it is not the token's
        authority's or refuses; the host is no node then.
    """
    stream = _dial(token.address)
    try:
        with deadline(stream, TIMEOUT_S):
            secured = _meet_office(stream, token)
            asked = request(token.node, state_dir, ALGORITHMS[algorithm]())
            proof = prove(bytes.fromhex(token.secret), secured.exported(), asked)
            form = {"number": token.number, "proof": proof.hex(), "request": asked.decode()}
            _frames.send(secured, json.dumps(form).encode())
            bundle = _receive_bundle(secured, token.address)
    except (ProtocolError, SSL.Error) as error:
        raise Untrusted(
            f"{token.address} is no office of an authority: {error}", hint=_HINT, reason="office"
        ) from error
    finally:
        stream.close()
    if bundle.ca is None or fingerprint(bundle.ca) != token.authority:
        raise Untrusted("the answer is another authority's", reason="office")
    _install(bundle, token.node, state_dir)
    return bundle


def renew(stream: SecureStream, trust: Trust, state_dir: Path, algorithm: str) -> None:
    """Have the office give a new key of this node a certificate, and install it.

    Raises: Untrusted, ConfigError, TransportError, ProtocolError; the old one stays in use then.
    """
    node = trust.identity.node
    asked = request(node, state_dir, ALGORITHMS[algorithm]())
    _frames.send(stream, asked)
    bundle = _receive_bundle(stream, stream.peer.node)
    if bundle.ca != trust.ca:
        raise Untrusted("the answer is another authority's", reason="office")
    _install(bundle, node, state_dir)


def _install(bundle: Bundle, node: str, state_dir: Path) -> None:
    named = named_node(bundle.certificate) if bundle.certificate is not None else None
    if named is None or named[1] != node or bundle.key is not None:
        raise Untrusted(f"the answer is no certificate for {node}", reason="office")
    install(bundle, state_dir)


def _receive_bundle(stream: SecureStream | TlsStream, who: str) -> Bundle:
    answer = _frames.receive(stream, FILE_BYTES_MAX, least=1)
    verdict, text = answer[:1], answer[1:]
    if verdict == DENIED:
        said = text[:1024].decode("utf-8", "replace")
        said = "".join(letter for letter in said if letter.isprintable())
        raise Untrusted(f"{who} refuses: {said}", hint=_HINT, reason="refused-us")
    if verdict != GRANTED:
        raise ProtocolError("an answer that is neither yes nor no")
    return _pem.parse(text, f"the answer of {who}")


def _meet_office(stream: SocketStream, token: Token) -> TlsStream:
    """TLS with whoever proves to be of the token's authority."""
    context = new_context()
    # Looked at below: what there is to trust is one fingerprint, and no store.
    context.set_verify(SSL.VERIFY_PEER, lambda *shown: True)
    engine = Engine(context, server=False)
    shake_hands(stream, engine)
    _check_office(certificates(engine), token, datetime.now(UTC))
    if engine.group() != GROUP:
        raise Untrusted(f"{token.address} agreed on {engine.group()}, not on {GROUP}")
    return TlsStream(stream, engine, None, None)


def _check_office(shown: Sequence[x509.Certificate], token: Token, now: datetime) -> None:
    """Raises Untrusted unless the peer is a node of the authority that the token names."""

    def refuse(why: str) -> Untrusted:
        hint = "somebody may be in between; check the address in the token"
        return Untrusted(f"{token.address} is not trusted: {why}", hint=hint, reason="office")

    if len(shown) != 2:
        raise refuse("it does not show its authority")
    certificate, ca = shown
    if fingerprint(ca) != token.authority:
        raise refuse("its authority is not the one of the token")
    if not is_signed_by(certificate, ca):
        raise refuse("its certificate is not from its authority")
    for each in shown:
        if not each.not_valid_before_utc <= now <= each.not_valid_after_utc:
            raise refuse("its certificate is not valid now; compare the clocks")
    named = named_node(certificate)
    if named is None or named[0] != token.domain:
        raise refuse(f"it is no node of {token.domain}")


class SocketStream:
    """TCP, where no transport provider is at work yet."""

    def __init__(self, connection: socket.socket, address: str) -> None:
        self._socket = connection
        self.peer_address = address

    def send(self, buffers: Sequence[Buffer]) -> None:
        try:
            for buffer in buffers:
                self._socket.sendall(buffer)
        except OSError as error:
            raise TransportError(f"{self.peer_address}: {error}") from error

    def receive_into(self, buffer: memoryview) -> int:
        try:
            return self._socket.recv_into(buffer)
        except OSError as error:
            raise TransportError(f"{self.peer_address}: {error}") from error

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _dial(address: str) -> SocketStream:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"the token's address {address!r} is none", hint="write HOST:PORT")
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S)
    except OSError as error:
        raise TransportError(
            f"the authority's office at {address} is not reached: {error}",
            hint="is [service.authority] listening there?",
        ) from error
    connection.settimeout(None)
    return SocketStream(connection, address)
