"""``novacron attestation``."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from novacron import ConfigError, Refused, ShellState

from novacron_security_attestation._admitted import Admitted, bound_to, utc_now
from novacron_security_attestation._collateral import read_collateral
from novacron_security_attestation._policy import SECTION, AttestationSettings
from novacron_security_attestation._verify import Verdict, read_evidence, read_nonce, verify

_collateral = click.option(
    "--collateral",
    "paths",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file, or a folder of files: the VCEK or VLEK, Intel's statements with their chain, "
    "revocation lists. Repeat it.",
)
_nonce = click.option("--nonce", help="What the host was asked to put into its report data, hex.")


@click.group()
def attestation() -> None:
    """Verify confidential hosts, and say which of them machines may move to."""


def _settings(state: ShellState) -> AttestationSettings:
    settings = state.config.sections.get(SECTION)
    return settings if isinstance(settings, AttestationSettings) else AttestationSettings()


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{text!r} is no time", hint="say it as 2026-02-10 or 2026-02-10T12:00:00+00:00"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@attestation.command("verify")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_nonce
@_collateral
@click.option("--at", "when", metavar="TIME", help="Judge as of then (ISO 8601), not as of now.")
@click.pass_context
def verify_command(
    ctx: click.Context,
    file: Path,
    nonce: str | None,
    paths: tuple[Path, ...],
    when: str | None,
) -> None:
    """Judge an SEV-SNP report or a TDX quote by the policy of [attestation].

    Ends with 5 if it is not trusted.
    """
    state = ctx.find_object(ShellState) or ShellState()
    verdict = verify(
        read_evidence(file),
        collateral=read_collateral(paths),
        settings=_settings(state),
        nonce=read_nonce(nonce) if nonce is not None else None,
        at=_moment(when),
    )
    _show(state, verdict)
    if not verdict.trusted:
        ctx.exit(Refused.exit_code)


@attestation.command("admit")
@click.argument("peer")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_nonce
@_collateral
@click.option("--fingerprint", default="", help="SHA-256 of the peer's certificate, hex: the "
              "report data must be SHA-512 of nonce and fingerprint.")  # fmt: skip
@click.pass_context
def admit(
    ctx: click.Context,
    peer: str,
    file: Path,
    nonce: str | None,
    paths: tuple[Path, ...],
    fingerprint: str,
) -> None:
    """Verify a peer's evidence and keep it: while it holds, the peer counts as attested.

    Give the nonce, and the fingerprint: then nobody can pass on another host's evidence, and the
    peer counts as attested with that certificate only. `attestation challenge` makes both.
    """
    state = ctx.find_object(ShellState) or ShellState()
    evidence, collateral = read_evidence(file), read_collateral(paths)
    asked = read_nonce(nonce) if nonce is not None else b""
    if fingerprint:
        fingerprint = fingerprint.replace(":", "").lower()
        asked = bound_to(asked, fingerprint)
    now = utc_now()
    verdict = verify(
        evidence,
        collateral=collateral,
        settings=_settings(state),
        nonce=asked or None,
        at=now,
    )
    if not verdict.trusted:
        raise Refused(
            f"the evidence of {peer!r} is not trusted: "
            + "; ".join(f"{one.what} [{one.code}]" for one in verdict.reasons),
            hint=verdict.reasons[0].cure,
            truth="nothing was admitted",
            reasons=[one.code for one in verdict.reasons],
        )
    admitted = Admitted(state.config.node.state_dir)
    admitted.admit(peer, evidence, collateral, asked, now, fingerprint)
    _show(state, verdict)


@attestation.command("challenge")
@click.option("--fingerprint", required=True, help="SHA-256 of the peer's certificate, hex.")
@click.pass_context
def challenge(ctx: click.Context, fingerprint: str) -> None:
    """Make a nonce for a peer, and the report data that its host has to ask its processor for."""
    state = ctx.find_object(ShellState) or ShellState()
    nonce = secrets.token_bytes(32)
    data = bound_to(nonce, fingerprint.replace(":", "").lower())
    found = {"nonce": nonce.hex(), "report_data": data.hex()}
    state.show(found, "", ("what", "value"), list(found.items()))


@attestation.command("list")
@click.pass_context
def list_peers(ctx: click.Context) -> None:
    """Show whose evidence was admitted, and what it is worth now."""
    state = ctx.find_object(ShellState) or ShellState()
    admitted, settings, now = Admitted(state.config.node.state_dir), _settings(state), utc_now()
    verdicts = {peer: admitted.judge(peer, settings, now) for peer in admitted.peers()}
    rows = [
        (peer, one.family, "yes" if one.trusted else "no", "; ".join(r.what for r in one.reasons))
        for peer, one in verdicts.items()
    ]
    state.show(
        {peer: one.to_json() for peer, one in verdicts.items()},
        "",
        ("peer", "family", "trusted", "why not"),
        rows,
    )


@attestation.command("forget")
@click.argument("peer")
@click.pass_context
def forget(ctx: click.Context, peer: str) -> None:
    """Drop a peer's evidence: it is no attested host any more."""
    state = ctx.find_object(ShellState) or ShellState()
    Admitted(state.config.node.state_dir).forget(peer)
    if state.json:
        state.print_json({"forgotten": peer})
    else:
        state.console.print(f"{peer} is no attested host any more", markup=False)


def _show(state: ShellState, verdict: Verdict) -> None:
    if state.json:
        state.print_json(verdict.to_json())
        return
    word = "trusted" if verdict.trusted else "genuine, not trusted" if verdict.genuine else "no"
    state.console.print(f"{verdict.family or 'unknown'}: {word}", markup=False)
    for reason in verdict.reasons:
        state.console.print(f"  {reason.code}: {reason.what}", markup=False)
        state.console.print(f"    next: {reason.cure}", markup=False)
    for note in verdict.notes:
        state.console.print(f"  note: {note}", markup=False)
    rows: list[tuple[str, Any]] = list(verdict.claims.items())
    if rows:
        state.table("", ("claim", "value"), rows)
