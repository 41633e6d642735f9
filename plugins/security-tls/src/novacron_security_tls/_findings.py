"""What ``novacron doctor`` says about this plugin: the library, and who this node is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from novacron import ConfigError, Finding, NovacronError, ShellState, Untrusted
from OpenSSL import SSL

from novacron_security_tls import _files, _pem
from novacron_security_tls._engine import GROUP, new_context
from novacron_security_tls._enrolment import TrustFolder, enrol_hint, renew_before
from novacron_security_tls._names import named_node


def findings() -> Iterator[Finding]:
    yield _library()
    yield _identity(*_node())


def _library() -> Finding:
    version = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode(errors="replace")
    try:
        new_context()
    except ConfigError as error:
        return Finding(
            subject="tls",
            status="broken",
            detail=f"{version}: {error.message}",
            hint=error.hint,
        )
    return Finding(subject="tls", status="ok", detail=f"{version} with {GROUP}")


def _node() -> tuple[Path, str]:
    """This node's state folder, and its name if that is known."""
    context = click.get_current_context(silent=True)
    state = context.find_object(ShellState) if context is not None else None
    if state is not None:
        try:
            return state.config.node.state_dir, state.config.node.name
        except NovacronError:
            pass  # that the configuration is broken is said by another finding
    given = os.environ.get("NOVACRON_NODE__STATE_DIR")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(given or Path(base) / "novacron"), os.environ.get("NOVACRON_NODE__NAME", "")


def _identity(state_dir: Path, node: str) -> Finding:
    node = node or _named_in(state_dir) or "NODE"
    now = datetime.now(UTC)
    try:
        trust = TrustFolder(state_dir, node, clock=lambda: now).current()
    except Untrusted as error:
        return Finding(
            subject="identity",
            status="missing" if error.facts.get("reason") == "not-enrolled" else "broken",
            detail=error.message,
            hint=error.hint,
        )
    ends = trust.certificate.not_valid_after_utc
    soon = ends - now < renew_before(trust.certificate)
    return Finding(
        subject="identity",
        status="note" if soon else "ok",
        detail=f"{node} of {trust.identity.trust_domain} until {ends:%Y-%m-%d %H:%M} UTC",
        hint=enrol_hint(node) if soon else "",
    )


def _named_in(state_dir: Path) -> str:
    """The node that the certificate in the folder names; empty if none can be read."""
    path = state_dir / _files.FOLDER / "cert.pem"
    try:
        certificate = _pem.parse(_files.read(path), str(path)).certificate
    except NovacronError:
        return ""
    named = named_node(certificate) if certificate is not None else None
    return named[1] if named is not None else ""
