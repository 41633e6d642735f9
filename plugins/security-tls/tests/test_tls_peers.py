"""Every kind of peer that must not get in, on real sockets, and what our log says of each."""

from __future__ import annotations

import gc
import logging
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from novacron import NovacronError, SecureStream, TransportError, Untrusted
from novacron_security_tls import Authority, Settings, TlsSecurity, TlsStream, _engine, _pem
from novacron_security_tls._engine import new_context
from OpenSSL import SSL
from tls_site import Call, Site, SocketStream, joined, shake, tcp_pair


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def refused_by_server(
    server: TlsSecurity, peer: Callable[[socket.socket], Any]
) -> tuple[NovacronError, SocketStream]:
    """What the server raises for a peer that a function plays."""
    near, far = tcp_pair()
    stream = SocketStream(far)
    serving = Call(lambda: server.server(stream))
    playing = Call(lambda: peer(near))
    error = serving.outcome()
    playing.outcome()
    near.close()
    assert isinstance(error, NovacronError), error
    assert stream.sock.fileno() == -1, "the stream was left open"
    return error, stream


def receive(stream: SecureStream, count: int) -> bytes:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = stream.receive_into(view)
        assert got
        view = view[got:]
    return bytes(data)


@pytest.mark.parametrize("algorithm", ["ecdsa-p256", "ml-dsa-65"])
def test_two_nodes_of_one_authority_speak(tmp_path: Path, algorithm: str) -> None:
    site = Site(tmp_path, algorithm=algorithm)
    with joined(site.alpha, site.beta) as (near, far):
        assert near.channel == far.channel
        assert near.channel.protocol == "TLSv1.3"
        assert near.channel.key_exchange == "X25519MLKEM768"
        assert near.peer == site.beta.identity()
        assert far.peer == site.alpha.identity()
        near.send([b"a", b"", memoryview(b"bc"), bytes(700_000), b"d"])
        assert receive(far, 700_004) == b"abc" + bytes(700_000) + b"d"
        far.send([b"yes"])
        assert receive(near, 3) == b"yes"


def test_megabytes_run_both_ways_at_once_through_small_buffers(site: Site) -> None:
    with joined(site.alpha, site.beta) as (near, far):
        size = 16 << 20
        calls = [
            Call(lambda: near.send([bytes(size)])),
            Call(lambda: far.send([b"\1" * size])),
            Call(lambda: receive(near, size) == b"\1" * size),
            Call(lambda: receive(far, size) == bytes(size)),
        ]
        assert [call.outcome() for call in calls] == [None, None, True, True]


def test_an_end_with_notice_is_an_end_and_the_other_direction_goes_on(site: Site) -> None:
    with joined(site.alpha, site.beta) as (near, far):
        near.send([b"x"])
        near.finish()
        near.finish()
        assert receive(far, 1) == b"x"
        room = memoryview(bytearray(10))
        assert far.receive_into(room) == 0
        assert far.receive_into(room) == 0
        far.send([b"still here"])
        assert receive(near, 10) == b"still here"
        with pytest.raises(TransportError, match="finished here"):
            near.send([b"more"])


def test_an_end_without_notice_is_a_cut(site: Site) -> None:
    with joined(site.alpha, site.beta) as (near, far):
        near.send([b"x"])
        assert receive(far, 1) == b"x"
        near.close()
        for _ in range(2):
            with pytest.raises(TransportError, match="cut off"):
                far.receive_into(memoryview(bytearray(10)))
        with pytest.raises(TransportError):
            far.send([b"x"])


def test_bytes_after_the_end_are_not_believed(site: Site) -> None:
    with joined(site.alpha, site.beta) as (near, far):
        near.finish()
        room = memoryview(bytearray(10))
        assert far.receive_into(room) == 0
        assert far.receive_into(room) == 0


def test_a_forged_record_breaks_the_stream_for_good(site: Site) -> None:
    with joined(site.alpha, site.beta) as (near, far):
        stream = near._stream
        assert isinstance(stream, SocketStream)
        stream.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        for _ in range(2):
            with pytest.raises(TransportError, match="TLS failed"):
                far.receive_into(memoryview(bytearray(10)))


def test_a_peer_that_makes_us_answer_without_end_is_left(site: Site) -> None:
    with joined(site.alpha, site.beta) as (near, far):
        # Stands for the answers to many key updates, which wait until we send something.
        native: Any = far._engine.connection
        SSL._lib.BIO_write(native._from_ssl, bytes(100_000), 100_000)  # type: ignore[attr-defined]
        stream = near._stream
        assert isinstance(stream, SocketStream)
        stream.sock.sendall(b"\x17")
        with pytest.raises(TransportError, match="again and again"):
            far.receive_into(memoryview(bytearray(10)))


def test_an_expired_certificate_is_told_apart(site: Site) -> None:
    past = datetime.now(UTC) - timedelta(days=40)
    old = Authority.open(site.folder / "ca", clock=lambda: past)
    old.issue("gamma", site.folder / "gamma", life=timedelta(days=30))
    gamma = site.open("gamma", clock=lambda: past)
    near, far = shake(gamma, site.beta, "beta")
    assert isinstance(far, Untrusted)
    assert far.facts["reason"] == "expired"
    assert "certificate of node gamma expired at" in far.message
    assert "novacron trust issue" in far.hint
    assert isinstance(near, Untrusted)
    assert near.facts["reason"] == "refused-us"
    # And the other way round.
    near, far = shake(site.alpha, gamma, "gamma")
    assert isinstance(near, Untrusted)
    assert near.facts["reason"] == "expired"
    assert isinstance(far, Untrusted)


def test_our_own_expired_certificate_is_said_before_anything_is_sent(site: Site) -> None:
    future = datetime.now(UTC) + timedelta(days=100)
    alpha = site.open("alpha", clock=lambda: future)
    near, far = tcp_pair()
    with pytest.raises(Untrusted, match="this node, alpha, is not usable: expired") as caught:
        alpha.client(SocketStream(near), "beta")
    assert "novacron trust issue alpha" in caught.value.hint
    assert far.recv(1) == b""
    far.close()


def test_a_certificate_that_is_not_yet_valid_is_told_apart(site: Site) -> None:
    future = datetime.now(UTC) + timedelta(days=2)
    early = Authority.open(site.folder / "ca", clock=lambda: future)
    early.issue("gamma", site.folder / "gamma")
    near, far = shake(site.open("gamma"), site.beta, "beta")
    assert isinstance(far, Untrusted)
    assert far.facts["reason"] == "not-yet-valid"
    assert "clocks" in far.hint
    assert isinstance(near, Untrusted)


def test_a_certificate_of_another_authority_is_told_apart(site: Site, tmp_path: Path) -> None:
    other = Site(tmp_path / "other")
    near, far = shake(other.alpha, site.beta, "beta")
    assert isinstance(near, Untrusted)
    assert near.facts["reason"] == "wrong-authority"
    assert "novacron trust join" in near.hint
    assert isinstance(far, Untrusted | TransportError)


def test_another_node_than_the_wanted_one_is_told_apart(site: Site) -> None:
    near, far = shake(site.alpha, site.beta, "gamma")
    assert isinstance(near, Untrusted)
    assert near.facts["reason"] == "name"
    assert "node gamma was wanted, and the certificate names beta" in near.message
    assert isinstance(far, NovacronError)


def test_a_revoked_node_is_refused_from_the_next_handshake_on(site: Site) -> None:
    gamma = site.node("gamma")
    with joined(gamma, site.beta):
        pass
    site.authority.revoke("gamma")
    site.authority.publish(site.folder / "beta")
    near, far = shake(gamma, site.beta, "beta")
    assert isinstance(far, Untrusted)
    assert far.facts["reason"] == "revoked"
    assert "node gamma was revoked" in far.message
    assert isinstance(near, Untrusted)
    near, _ = shake(site.beta, gamma, "gamma")
    assert isinstance(near, Untrusted)
    assert near.facts["reason"] == "revoked"
    # A node that was told of its own revocation says so itself.
    site.authority.publish(site.folder / "gamma")
    with pytest.raises(Untrusted, match="it was revoked"):
        gamma.identity()


def test_a_renewed_certificate_is_used_without_a_restart(site: Site) -> None:
    before = site.beta.identity()
    site.authority.issue("beta", site.folder / "beta")
    assert site.beta.identity() != before
    with joined(site.alpha, site.beta) as (near, _):
        assert near.peer == site.beta.identity()


def test_a_chain_with_an_authority_of_the_peers_own_making_is_refused(
    site: Site, tmp_path: Path
) -> None:
    """A node's certificate cannot vouch for others."""
    rogue = Authority.create(tmp_path / "rogue")
    bundle, _ = rogue.issue_bundle("gamma")
    # Signed by beta's key, shown together with beta's true certificate.
    beta = site.beta._trust()[0]
    beta_key = _pem.parse(beta.key_file.read_bytes(), "beta").key
    assert beta_key is not None
    assert bundle.certificate is not None
    assert bundle.key is not None
    builder = x509.CertificateBuilder(
        issuer_name=beta.certificate.subject,
        subject_name=bundle.certificate.subject,
        public_key=bundle.key.public_key(),
        serial_number=77,
        not_valid_before=bundle.certificate.not_valid_before_utc,
        not_valid_after=bundle.certificate.not_valid_after_utc,
        extensions=list(bundle.certificate.extensions),
    )
    forged = builder.sign(beta_key, hashes.SHA256())  # type: ignore[arg-type]
    key_file = tmp_path / "forged.pem"
    key_file.write_bytes(_pem.dump_key(bundle.key))

    def play(sock: socket.socket) -> None:
        context = new_context()
        untyped: Any = context
        untyped.use_certificate(forged)
        untyped.add_extra_chain_cert(beta.certificate)
        context.use_privatekey_file(str(key_file))
        speak(context, sock)

    error, _ = refused_by_server(site.alpha, play)
    assert isinstance(error, Untrusted)
    assert error.facts["reason"] in {"certificate", "wrong-authority"}


def speak(context: SSL.Context, sock: socket.socket) -> SSL.Connection:
    sock.settimeout(None)
    connection = SSL.Connection(context, sock)
    connection.set_connect_state()
    connection.do_handshake()
    connection.recv(1)
    return connection


def stdlib_client(site: Site, name: str) -> ssl.SSLContext:
    folder = site.folder / name / "security-tls"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "ca.pem")
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def wrap(context: ssl.SSLContext, sock: socket.socket) -> bytes:
    with context.wrap_socket(sock) as tls:
        return tls.recv(1)


def test_a_tls_1_2_client_is_told_apart_though_its_certificate_is_good(site: Site) -> None:
    context = stdlib_client(site, "alpha")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    error, _ = refused_by_server(site.beta, lambda sock: wrap(context, sock))
    assert isinstance(error, Untrusted)
    assert error.facts["reason"] == "old-tls"
    assert "TLS 1.3" in error.message


def test_a_client_with_classical_keys_only_is_told_apart_though_its_certificate_is_good(
    site: Site,
) -> None:
    context = stdlib_client(site, "alpha")
    context.set_ecdh_curve("X25519")
    error, _ = refused_by_server(site.beta, lambda sock: wrap(context, sock))
    assert isinstance(error, Untrusted)
    assert error.facts["reason"] == "weak"
    assert "X25519MLKEM768" in error.message


def test_a_classical_group_is_refused_after_the_handshake_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check that stands behind the setting, on both sides, with OpenSSL left free to choose."""
    monkeypatch.setattr(_engine, "GROUP", "X25519")
    near, far = shake(site.open("alpha"), site.open("beta"), "beta")
    assert isinstance(near, Untrusted)
    assert near.facts["reason"] == "weak"
    assert "agreed on x25519" in near.message.lower()
    assert isinstance(far, NovacronError)


def test_a_server_with_classical_keys_only_is_refused_before_our_certificate_is_shown(
    site: Site,
) -> None:
    folder = site.folder / "beta" / "security-tls"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_ecdh_curve("X25519")
    near, far = tcp_pair()

    def serve() -> bytes:
        with context.wrap_socket(far, server_side=True) as tls:
            return tls.recv(1)

    serving = Call(serve)
    calling = Call(lambda: site.alpha.client(SocketStream(near), "beta"))
    assert isinstance(calling.outcome(), Untrusted)
    assert isinstance(serving.outcome(), OSError)


def test_a_client_without_a_certificate_is_told_apart_and_gets_no_application_byte(
    site: Site,
) -> None:
    got: list[bytes] = []

    def play(sock: socket.socket) -> None:
        context = new_context()
        sock.settimeout(None)
        connection = SSL.Connection(context, sock)
        connection.set_connect_state()
        connection.do_handshake()
        got.append(connection.recv(1))

    error, _ = refused_by_server(site.beta, play)
    assert isinstance(error, Untrusted)
    assert error.facts["reason"] == "no-certificate"
    assert got == []


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: beta\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"\x00" * 100,
        b"\xff" * 100,
        b"\x16\x03\x01\x00\x05hello",
        b"\x17\x03\x03\x00\x10" + bytes(16),
    ],
)
def test_what_is_not_tls_is_told_apart_and_gets_no_byte(site: Site, greeting: bytes) -> None:
    answer = bytearray()

    def play(sock: socket.socket) -> None:
        sock.sendall(greeting)
        sock.shutdown(socket.SHUT_WR)
        while more := sock.recv(4096):
            answer.extend(more)

    error, _ = refused_by_server(site.beta, play)
    assert isinstance(error, Untrusted)
    assert error.facts["reason"] in {"not-tls", "protocol"}
    assert answer == b""


def test_a_peer_that_says_nothing_is_left_after_the_timeout(site: Site) -> None:
    beta = site.open("beta", timeout_s=0.2)
    near, far = tcp_pair()
    started = time.monotonic()
    with pytest.raises(TransportError, match=r"within 0\.2 s") as caught:
        beta.server(SocketStream(far))
    assert time.monotonic() - started < 5
    assert caught.value.facts["reason"] == "silent"
    near.close()


def test_a_peer_that_stops_in_the_middle_is_left_after_the_timeout(site: Site) -> None:
    beta = site.open("beta", timeout_s=0.3)
    near, far = tcp_pair()
    near.sendall(b"\x16\x03\x01\x07\x00")
    with pytest.raises(TransportError) as caught:
        beta.server(SocketStream(far))
    assert caught.value.facts["reason"] == "silent"
    near.close()


def test_a_peer_that_leaves_at_once_is_told_apart(site: Site) -> None:
    near, far = tcp_pair()
    near.close()
    with pytest.raises(TransportError, match="left before it said anything") as caught:
        site.beta.server(SocketStream(far))
    assert caught.value.facts["reason"] == "half-open"


def test_a_peer_that_leaves_in_the_middle_is_told_apart(site: Site) -> None:
    near, far = tcp_pair()
    near.sendall(b"\x16\x03\x01\x07\x00")
    near.close()
    with pytest.raises(TransportError, match="left in the middle"):
        site.beta.server(SocketStream(far))


def test_a_handshake_without_end_is_cut_short(site: Site) -> None:
    # A ClientHello that claims 100,000 bytes, one small record after the other.
    body = b"\x01\x01\x86\xa0" + bytes(500)
    record = b"\x16\x03\x01" + len(body).to_bytes(2, "big") + body
    more = b"\x16\x03\x01\x01\xf4" + bytes(500)

    def play(sock: socket.socket) -> None:
        sock.sendall(record)
        for _ in range(1000):
            sock.sendall(more)

    error, stream = refused_by_server(site.beta, play)
    assert isinstance(error, Untrusted)
    assert stream.received <= 100_000


def test_a_session_cannot_be_taken_up_again(site: Site) -> None:
    """A resumed session would skip the look at the certificate and at the revocation list."""
    context = new_context()
    context.set_session_cache_mode(SSL.SESS_CACHE_CLIENT)
    alpha = site.alpha._trust()[0]
    untyped: Any = context
    untyped.use_certificate(alpha.certificate)
    context.use_privatekey_file(str(alpha.key_file))
    sessions: list[SSL.Session | None] = []

    def play(sock: socket.socket) -> None:
        sock.settimeout(None)
        connection = SSL.Connection(context, sock)
        connection.set_connect_state()
        if sessions and sessions[0] is not None:
            connection.set_session(sessions[0])
        connection.do_handshake()
        connection.recv(1)
        sessions.append(connection.get_session())
        native: Any = connection
        reused.append(SSL._lib.SSL_session_reused(native._ssl))  # type: ignore[attr-defined]

    reused: list[int] = []
    for _ in range(2):
        near, far = tcp_pair()
        serving = Call(lambda far=far: site.beta.server(SocketStream(far)))
        playing = Call(lambda near=near: play(near))
        assert isinstance(serving.outcome(), TlsStream)
        assert playing.outcome() is None
        serving.value.close()
        near.close()
    assert reused == [0, 0]


def test_a_refused_peer_is_in_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        refused_by_server(site.beta, lambda sock: sock.sendall(b"GET / HTTP/1.1\r\n\r\n"))
    assert "refused 127.0.0.1" in caplog.text
    assert "HTTP, not TLS" in caplog.text


def test_errors_that_are_kept_do_not_hurt_the_garbage_collector(site: Site) -> None:
    kept: list[Any] = []
    for _ in range(50):
        near, far = tcp_pair()
        near.sendall(b"\xff" * 64)
        try:
            site.beta.server(SocketStream(far))
        except Untrusted as error:
            # A circle of references through the traceback, as tests and debuggers make them.
            kept.append([error])
            kept[-1].append(kept[-1])
        near.close()
    assert len(kept) == 50
    kept.clear()
    gc.collect()


def test_many_handshakes_at_once_do_not_mix_up_their_peers(site: Site, tmp_path: Path) -> None:
    nodes = {name: site.node(name) for name in ("n1", "n2", "n3", "n4")}
    stranger = Site(tmp_path / "other").alpha
    for _ in range(5):
        calls = []
        for name, node in [*nodes.items(), ("stranger", stranger)]:
            near, far = tcp_pair()
            serving = Call(lambda far=far: site.beta.server(SocketStream(far)))
            calling = Call(lambda near=near, node=node: node.client(SocketStream(near), "beta"))
            calls.append((name, serving, calling))
        for name, serving, calling in calls:
            near_end, far_end = calling.outcome(), serving.outcome()
            if name == "stranger":
                assert isinstance(near_end, Untrusted)
                assert isinstance(far_end, NovacronError)
            else:
                assert far_end.peer.node == name
                near_end.close()
                far_end.close()


@pytest.mark.parametrize("wrong", [0, -1.0])
def test_a_timeout_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=">"):
        Settings(handshake_timeout_s=wrong)
