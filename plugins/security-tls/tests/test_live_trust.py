"""Trust that ends, ends what is open; what is renewed, does not; and all peers hear of it."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from novacron import ConfigError, NodeFacts, ProtocolError, TransportError, Untrusted
from novacron_security_tls import Authority, TlsSecurity, TlsStream, TrustFolder
from novacron_security_tls._lists import answer, tell
from novacron_security_tls._service import ServiceSettings, Watcher
from novacron_security_tls._spread import Spread
from real_channels import ChannelNode, channel_nodes
from tls_site import Call, Site, SocketStream, joined, shake, tcp_pair

WAIT_S = 20.0


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# What is open.


def test_the_streams_of_a_revoked_peer_are_cut_and_no_others(site: Site) -> None:
    gamma = site.node("gamma")
    with joined(site.alpha, site.beta) as (near, far), joined(gamma, site.beta) as (_, other):
        waiting = Call(lambda: far.receive_into(memoryview(bytearray(1))))
        assert site.beta.review() == 0
        site.authority.revoke("alpha")
        site.authority.publish(site.folder / "beta")
        assert site.beta.review() == 1
        assert isinstance(waiting.outcome(), TransportError)
        with pytest.raises(TransportError, match=r"alpha is trusted no longer.*revoked"):
            far.send([b"x"])
        assert far.closed
        assert not near.closed  # its own node does not know yet
        other.send([b"x"])
        assert site.beta.review() == 0


def test_a_node_that_learns_that_it_was_revoked_itself_speaks_to_nobody(site: Site) -> None:
    with joined(site.alpha, site.beta) as (near, _):
        site.authority.revoke("alpha")
        site.authority.publish(site.folder / "alpha")
        assert site.alpha.review() == 1
        with pytest.raises(TransportError, match="it was revoked"):
            near.send([b"x"])


def test_files_that_cannot_be_read_for_a_moment_break_nothing_off(site: Site) -> None:
    with joined(site.alpha, site.beta) as (near, far):
        (site.folder / "alpha" / "security-tls" / "cert.pem").write_text("not a certificate")
        assert site.alpha.review() == 0
        near.send([b"x"])
        assert far.receive_into(memoryview(bytearray(1))) == 1


def test_a_certificate_is_renewed_without_a_stream_being_cut(site: Site) -> None:
    with joined(site.alpha, site.beta) as (near, far):
        before = site.alpha.identity()
        site.authority.issue("alpha", site.folder / "alpha")
        assert site.alpha.review() == site.beta.review() == 0
        near.send([b"x"])
        assert far.receive_into(memoryview(bytearray(1))) == 1
        with joined(site.alpha, site.beta) as (_, renewed):
            assert renewed.peer.node == before.node
            assert renewed.peer.fingerprint != before.fingerprint


def test_a_stream_ends_with_the_certificate_that_opened_it(site: Site) -> None:
    now = datetime.now(UTC)
    later = now + timedelta(hours=30)
    times = iter([now] * 50)
    clock = {"beta": lambda: next(times, later)}
    site.authority.issue("alpha", site.folder / "alpha", life=timedelta(hours=24))
    beta = site.open("beta", clock=clock["beta"])
    with joined(site.alpha, beta) as (_, far):
        for _ in times:
            pass
        assert beta.review() == 1
        with pytest.raises(TransportError, match=r"alpha is trusted no longer.*expired"):
            far.send([b"x"])


def test_streams_of_another_authority_are_cut_when_the_authority_is_replaced(site: Site) -> None:
    with joined(site.alpha, site.beta) as (_, far):
        Authority.create(site.folder / "new").issue("beta", site.folder / "beta")
        assert site.beta.review() == 1
        with pytest.raises(TransportError, match="not from the authority"):
            far.send([b"x"])


def test_whoever_is_revoked_during_its_handshake_is_cut_off(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    shaken = TlsStream.send

    def revoke(stream: TlsStream, buffers: object) -> None:
        shaken(stream, buffers)  # type: ignore[arg-type]
        monkeypatch.setattr(TlsStream, "send", shaken)
        site.authority.revoke("alpha")
        site.authority.publish(site.folder / "beta")

    monkeypatch.setattr(TlsStream, "send", revoke)  # the server's welcome is its last word
    near, far = shake(site.alpha, site.beta, "beta")
    assert isinstance(far, TlsStream)
    assert far.closed
    near.close()


def test_a_certificate_that_is_being_installed_is_never_seen_in_part(site: Site) -> None:
    folder = TrustFolder(site.folder / "alpha", "alpha", clock=lambda: datetime.now(UTC))
    fingerprints = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            fingerprints.add(folder.current().identity.fingerprint)

    looking = Call(look)
    for _ in range(12):
        site.authority.issue("alpha", site.folder / "alpha")
    ended.set()
    assert looking.outcome() is None
    assert fingerprints


# Lists.


def exchange(near: TlsSecurity, far: TlsSecurity) -> tuple[object, object]:
    """What a node that tells and a node that answers find out; over real, plain streams."""
    one, other = (SocketStream(end) for end in tcp_pair())
    answering = Call(lambda: answer(other, far))  # type: ignore[arg-type]
    told = Call(lambda: tell(one, near)).outcome()  # type: ignore[arg-type]
    one.close()
    answered = answering.outcome()
    other.close()
    return told, answered


@pytest.mark.parametrize("knows", ["alpha", "beta"])
def test_the_newer_list_goes_to_whoever_lacks_it(site: Site, knows: str) -> None:
    site.node("gamma")
    site.authority.revoke("gamma")
    site.authority.publish(site.folder / knows)
    assert {node.revocations()[0] for node in (site.alpha, site.beta)} == {1, 2}
    assert exchange(site.alpha, site.beta) == (2, 2)
    assert [node.revocations()[0] for node in (site.alpha, site.beta)] == [2, 2]
    assert exchange(site.alpha, site.beta) == (2, 2)


def test_a_list_that_the_authority_has_not_signed_is_refused(site: Site, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other")
    other.issue("gamma", tmp_path / "gamma")
    other.revoke("gamma")
    forged = other.revocations().public_bytes(Encoding.DER)
    with pytest.raises(Untrusted, match="not signed by the authority"):
        site.alpha.take(forged)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    ours = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(site.authority.certificate.subject)
        .last_update(now)
        .next_update(now + timedelta(days=1))
        .add_extension(x509.CRLNumber(99), critical=False)
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(Untrusted, match="not signed by the authority"):
        site.alpha.take(ours.public_bytes(Encoding.DER))
    with pytest.raises(ConfigError, match="cannot be read"):
        site.alpha.take(b"nonsense")
    assert site.alpha.revocations()[0] == 1


def test_an_older_list_changes_nothing(site: Site) -> None:
    _, old = site.alpha.revocations()
    site.node("gamma")
    site.authority.revoke("gamma")
    site.authority.publish(site.folder / "alpha")
    assert site.alpha.take(old) == 2


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\0\0\0\x07" + bytes(7),
        b"\0\0\0\x09" + bytes(9),
        b"\xff\xff\xff\xff",
        b"\0\0\0\x08" + b"\xff" * 8 + b"\xff\xff\xff\xff",
        b"\0\0\0\x08" + b"\xff" * 8 + b"\0\0\0\x03abc",
    ],
)
def test_what_is_no_list_exchange_ends_the_channel_and_changes_nothing(
    site: Site, said: bytes
) -> None:
    near, far = tcp_pair()
    stream = SocketStream(far)
    answering = Call(lambda: answer(stream, site.beta))  # type: ignore[arg-type]
    near.sendall(said)
    near.shutdown(socket.SHUT_WR)
    assert isinstance(answering.outcome(), ProtocolError | ConfigError)
    assert site.beta.revocations()[0] == 1
    near.close()
    stream.close()


# Fleets.


@pytest.mark.parametrize("seed", range(30))
def test_a_list_reaches_all_that_are_up_in_a_few_steps_and_the_others_when_they_are_back(
    seed: int,
) -> None:
    """Fifty nodes, each with a few peers; a tenth is down, and some tries fail."""
    chance = random.Random(seed)
    names = [f"n{number}" for number in range(50)]
    peers = {
        name: {names[(at + 1) % 50], names[at - 1], *chance.sample(names, 3)} - {name}
        for at, name in enumerate(names)
    }
    down = set(chance.sample(names[1:], 5))
    numbers = dict.fromkeys(names, 1) | {names[0]: 2}
    spreads = {name: Spread(ask_s=60.0) for name in names}
    reached_at = 0

    def step(now_s: float) -> None:
        for name in names:
            if name in down:
                continue
            for peer in spreads[name].due(now_s, numbers[name], sorted(peers[name])):
                if peer in down or chance.random() < 0.1:
                    spreads[name].failed(now_s, peer)
                    continue
                numbers[peer] = numbers[name] = max(numbers[peer], numbers[name])
                spreads[name].done(now_s, peer, numbers[peer])
                spreads[peer].heard(name, numbers[name])

    for tick in range(40):
        step(tick * 0.25)
        if not reached_at and all(numbers[name] == 2 for name in names if name not in down):
            reached_at = tick
    assert 0 < reached_at <= 8, "two seconds"
    assert {numbers[name] for name in down} == {1}
    down.clear()
    for tick in range(40, 40 + 4 * 35):
        step(tick * 0.25)
    assert set(numbers.values()) == {2}


def test_a_fleet_cuts_a_revoked_node_off_when_one_of_its_nodes_has_the_list(
    tmp_path: Path,
) -> None:
    """Real TLS over real TCP: each node knows only the next one."""

    async def scenario(nodes: dict[str, ChannelNode]) -> None:
        streams = {
            name: await asyncio.to_thread(open_to_mallory, nodes, name)
            for name in nodes
            if name != "mallory"
        }
        ring = sorted(streams)
        settings = ServiceSettings(watch_s=0.05)
        watching = [
            asyncio.create_task(
                Watcher(nodes[name].security, settings, lambda n=at: [ring[n]]).run()
            )
            for at, name in zip([1, 2, 3, 4, 0], ring, strict=True)
        ]
        authority = Authority.open(tmp_path / "authority")
        authority.revoke("mallory")
        authority.publish(tmp_path / ring[0])
        async with asyncio.timeout(WAIT_S):
            ends = [asyncio.to_thread(until_cut, stream) for stream in streams.values()]
            await asyncio.gather(*ends)
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        for node in (nodes[name] for name in ring):
            assert node.security.revocations()[0] == 2

    with channel_nodes(tmp_path, "a", "b", "c", "d", "e", "mallory") as nodes:
        held = threading.Event()
        nodes["mallory"].channels.serve("test/1", lambda stream: bool(held.wait(WAIT_S)))
        asyncio.run(scenario(nodes))
        held.set()


def until_cut(stream: TlsStream) -> None:
    with pytest.raises(TransportError):
        stream.receive_into(memoryview(bytearray(1)))


def open_to_mallory(nodes: dict[str, ChannelNode], name: str) -> TlsStream:
    stream = nodes[name].channels.open("mallory", "test/1")
    assert isinstance(stream, TlsStream)
    return stream


def test_a_node_without_channels_watches_itself_alone(site: Site) -> None:
    assert NodeFacts(name="alpha", state_dir=site.folder / "alpha").channels is None
    assert site.alpha.review() == 0
