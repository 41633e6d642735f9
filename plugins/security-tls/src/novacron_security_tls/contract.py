"""How this plugin is tested: two nodes of one authority, a stranger and an intruder.

Needs novacron-testkit; `novacron plugins check security-tls` finds it here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from novacron import NodeFacts
from novacron_testkit.contracts import SecurityContract, TrustSetup
from OpenSSL import SSL

from novacron_security_tls._authority import Authority
from novacron_security_tls._enrolment import Trust
from novacron_security_tls._provider import Settings, TlsSecurity
from novacron_security_tls._tls import make_context


class Intruder(TlsSecurity):
    """Shows a certificate of another authority than the one it trusts."""

    def __init__(self, own: Trust, believed: Trust) -> None:
        node = NodeFacts(name=own.identity.node, state_dir=own.key_file.parent.parent)
        super().__init__(Settings(), node)
        self.mixed = Trust(
            identity=own.identity,
            ca=believed.ca,
            certificate=own.certificate,
            key_file=own.key_file,
            revoked=frozenset(),
            list_number=0,
            list_der=b"",
        )

    def _trust(self) -> tuple[Trust, SSL.Context]:
        return self.mixed, make_context(self.mixed)


class TestTls(SecurityContract):
    """Each node keeps its own state; the authorities are made for each test."""

    provider: ClassVar[type[Any]] = TlsSecurity

    def node(self, tmp_path: Path, authority: Authority, name: str, folder: str) -> TlsSecurity:
        state = tmp_path / folder
        authority.issue(name, state)
        return TlsSecurity(Settings(), NodeFacts(name=name, state_dir=state))

    def trust(self, tmp_path: Path) -> TrustSetup:
        ours = Authority.create(tmp_path / "ca")
        theirs = Authority.create(tmp_path / "other-ca")
        alpha = self.node(tmp_path, ours, "alpha", "alpha")
        stranger = self.node(tmp_path, theirs, "beta", "stranger")
        return TrustSetup(
            alpha=alpha,
            beta=self.node(tmp_path, ours, "beta", "beta"),
            stranger=stranger,
            intruder=Intruder(stranger._trust()[0], alpha._trust()[0]),
        )
