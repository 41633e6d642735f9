"""Hosts become nodes by a token, nodes renew themselves; nobody else gets a certificate."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron import ConfigError, NovacronError, TransportError, Untrusted
from novacron_security_tls import Authority
from novacron_security_tls._commands import trust
from novacron_security_tls._door import AuthorityService, OfficeSettings
from novacron_security_tls._service import ServiceSettings, Watcher
from novacron_security_tls._tokens import PREFIX, Token, Tokens, fingerprint, parse, prove
from novacron_security_tls._visit import enrol
from novacron_transport_tcp import TcpTransport
from real_channels import ChannelNode, channel_nodes
from tls_site import Call

HOUR = timedelta(hours=1)


class Town:
    """A node ``clerk`` that keeps the office, a node ``alpha``, and the authority's folder."""

    def __init__(self, folder: Path, nodes: dict[str, ChannelNode]) -> None:
        self.folder = folder
        self.nodes = nodes
        self.authority = Authority.open(folder / "authority")
        clerk = nodes["clerk"]
        providers = {
            "security": clerk.security,
            "transport": TcpTransport(TcpTransport.Settings(), clerk.facts),
        }
        node: Any = SimpleNamespace(channels=clerk.channels, provider=providers.__getitem__)
        self.service = AuthorityService(
            OfficeSettings(
                enabled=True, folder=str(folder / "authority"), listen="127.0.0.1:0", life_h=24
            ),
            node,
        )
        asyncio.run(self.service.start())

    def token(self, node: str, *, valid: timedelta = HOUR, made: datetime | None = None) -> Token:
        tokens = Tokens(self.authority.folder)
        number, secret = tokens.make(node, made or datetime.now(UTC), valid)
        return Token(
            node=node,
            address=self.service.address,
            domain=self.authority.domain,
            authority=fingerprint(self.authority.certificate),
            number=number,
            secret=secret,
        )

    def state_of(self, token: Token) -> str:
        (kept,) = [t for t in Tokens(self.authority.folder).all() if t.number == token.number]
        return kept.state(datetime.now(UTC))

    def issued(self) -> int:
        return len(self.authority.issued())


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    with channel_nodes(tmp_path, "clerk", "alpha") as nodes:
        made = Town(tmp_path, nodes)
        yield made
        asyncio.run(made.service.stop())
        for thread in threading.enumerate():
            if thread.name in ("enrol", "office"):
                thread.join(10)


# Tokens.


@pytest.mark.parametrize("algorithm", ["ecdsa-p256", "ml-dsa-65"])
def test_a_host_with_a_token_becomes_a_node_and_its_key_never_leaves_it(
    town: Town, algorithm: str
) -> None:
    state = town.folder / "beta"
    bundle = enrol(town.token("beta"), state, algorithm)
    assert bundle.key is None
    town.nodes["beta"] = beta = ChannelNode("beta", town.folder, town.nodes["alpha"].addresses)
    assert beta.security.identity().node == "beta"
    town.nodes["alpha"].channels.serve("test/1", lambda stream: stream.send([b"hello"]))
    stream = beta.channels.open("alpha", "test/1")
    room = memoryview(bytearray(5))
    assert stream.receive_into(room) == 5
    stream.close()
    (issued,) = [entry for entry in town.authority.issued() if entry.node == "beta"]
    assert issued.not_after - issued.not_before < timedelta(hours=24.2)


def test_a_token_is_used_once(town: Town) -> None:
    token = town.token("beta")
    enrol(token, town.folder / "beta")
    assert town.state_of(token) == "used"
    count = town.issued()
    with pytest.raises(Untrusted, match=r"used .* revoke beta"):
        enrol(token, town.folder / "thief")
    assert town.issued() == count
    assert not (town.folder / "thief" / "security-tls" / "cert.pem").exists()


def test_a_token_that_expired_is_refused(town: Town) -> None:
    token = town.token("beta", made=datetime.now(UTC) - 2 * HOUR)
    with pytest.raises(Untrusted, match="expired"):
        enrol(token, town.folder / "beta")


def test_who_does_not_have_the_secret_is_refused_and_the_token_stays_open(town: Town) -> None:
    token = town.token("beta")
    wrong = evolve(token, secret=secrets.token_hex(16))
    with pytest.raises(Untrusted, match="not proved"):
        enrol(wrong, town.folder / "beta")
    with pytest.raises(Untrusted, match="no such token"):
        enrol(evolve(token, number="0" * 16), town.folder / "beta")
    assert town.state_of(token) == "open"
    enrol(token, town.folder / "beta")


def test_a_token_gives_a_right_to_one_name(town: Town) -> None:
    with pytest.raises(Untrusted, match="not for beta"):
        enrol(evolve(town.token("beta"), node="alpha"), town.folder / "beta")


def test_an_office_of_another_authority_learns_nothing_of_the_token(
    town: Town, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere"
    with channel_nodes(other, "clerk", "alpha") as nodes:
        foreign = Town(other, nodes)
        token = evolve(town.token("beta"), address=foreign.service.address)
        with pytest.raises(Untrusted, match="not the one of the token"):
            enrol(token, town.folder / "beta")
        asyncio.run(foreign.service.stop())
    assert town.state_of(token) == "open"


def test_a_proof_holds_on_its_own_connection_and_for_its_own_request_alone() -> None:
    secret = secrets.token_bytes(16)
    proof = prove(secret, b"this connection", b"my request")
    assert proof != prove(secret, b"that connection", b"my request")
    assert proof != prove(secret, b"this connection", b"your request")


def test_strangers_without_tls_and_silent_ones_are_left(town: Town) -> None:
    host, port = town.service.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        plain.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while plain.recv(4096):
                pass
    enrol(town.token("beta"), town.folder / "beta")


def test_two_hosts_with_one_token_get_one_certificate(town: Town) -> None:
    token = town.token("beta")
    count = town.issued()
    calls = [Call(lambda n=n: enrol(token, town.folder / f"beta{n}")) for n in range(4)]
    outcomes = [call.outcome() for call in calls]
    assert sum(not isinstance(outcome, NovacronError) for outcome in outcomes) == 1
    assert town.issued() == count + 1


@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda b: PREFIX + b.hex()))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text)
    assert len(text) < 12 or text not in refused.value.message


def test_a_token_does_not_show_its_secret(town: Town) -> None:
    token = town.token("beta")
    assert token.secret not in repr(token)
    assert parse(token.text()) == token
    assert (town.authority.folder / "tokens.json").stat().st_mode & 0o077 == 0


def test_the_commands_make_a_token_and_a_node_of_it(town: Town) -> None:
    run, folder = CliRunner(), ["--dir", str(town.authority.folder)]
    asked = ["token", "beta", "--address", town.service.address, "--valid", "30m", *folder]
    made = run.invoke(trust, asked)
    text = made.stdout.strip()
    state = town.folder / "beta"
    joined = run.invoke(trust, ["join", "-", "--state", str(state), "--json"], input=text + "\n")
    assert json.loads(joined.stdout)["node"] == "beta"
    (shown,) = json.loads(run.invoke(trust, ["tokens", "--json", *folder]).stdout)
    assert (shown["node"], shown["state"]) == ("beta", "used")
    assert text[len(PREFIX) :] not in run.invoke(trust, ["tokens", *folder]).stdout


# Renewal.


def test_a_node_renews_its_certificate_by_a_new_key_and_no_stream_is_cut(town: Town) -> None:
    alpha = town.nodes["alpha"]
    held = threading.Event()
    alpha.channels.serve("test/1", lambda stream: bool(held.wait(10)))
    stream = town.nodes["clerk"].channels.open("alpha", "test/1")
    before = alpha.security.current_trust()
    alpha.security.renew("clerk")
    after = alpha.security.current_trust()
    assert after.identity.node == "alpha"
    assert after.certificate.public_key() != before.certificate.public_key()
    assert alpha.security.review() == 0
    stream.send([b"still open"])
    held.set()
    stream.close()


def test_a_node_renews_itself_when_a_third_of_its_time_is_left(town: Town) -> None:
    alpha = town.nodes["alpha"]
    town.authority.issue("alpha", alpha.folder / "alpha", life=timedelta(hours=24))
    assert not alpha.security.due()
    before = alpha.security.current_trust().certificate
    ends = before.not_valid_after_utc
    alpha.security._clock = lambda: ends - timedelta(hours=7)
    assert alpha.security.due()

    async def watch() -> None:
        renewal = ServiceSettings(watch_s=0.02, renew_from=["nobody", "clerk"])
        watcher = asyncio.create_task(Watcher(alpha.security, renewal, list).run())
        async with asyncio.timeout(20):
            while alpha.security.current_trust().certificate == before:
                await asyncio.to_thread(alpha.security.review)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)

    alpha.addresses.setdefault("nobody", "127.0.0.1:1")
    asyncio.run(watch())
    assert town.authority.issued()[-1].node == "alpha"


def test_a_node_gets_no_certificate_of_another_name(town: Town) -> None:
    from novacron_security_tls import _frames
    from novacron_security_tls._algorithms import ALGORITHMS
    from novacron_security_tls._enrolment import request
    from novacron_security_tls._office import DENIED, RENEWAL

    count = town.issued()
    stream = town.nodes["alpha"].channels.open("clerk", RENEWAL)
    _frames.send(stream, request("clerk", town.folder / "made-up", ALGORITHMS["ecdsa-p256"]()))
    assert _frames.receive(stream, 4096)[:1] == DENIED
    stream.close()
    assert town.issued() == count


def test_a_node_that_keeps_no_office_renews_nobody(town: Town) -> None:
    with pytest.raises(TransportError, match="opens no channel"):
        town.nodes["clerk"].security.renew("alpha")
