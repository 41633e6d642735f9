"""What ``novacron doctor`` says of attestation on this host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from novacron import Finding, NovacronError, ShellState

from novacron_security_attestation._admitted import Admitted, utc_now
from novacron_security_attestation._policy import SECTION, AttestationSettings

# Where Linux lets a confidential guest ask its processor for evidence, the newest way first.
DEVICES: Final = (
    ("/sys/kernel/config/tsm/report", "reports by configfs (Linux 6.7 and later)"),
    ("/dev/sev-guest", "SEV-SNP reports"),
    ("/dev/tdx_guest", "TDX reports"),
)


def findings(devices: tuple[tuple[str, str], ...] = DEVICES) -> Iterator[Finding]:
    """Whether this system can give evidence of itself, and what admitted evidence is worth now."""
    found = [f"{path}: {what}" for path, what in devices if Path(path).exists()]
    yield Finding(
        subject="confidential guest",
        status="ok" if found else "note",
        detail="; ".join(found) or "this system gives no evidence of itself",
        hint="" if found else "only guests of SEV-SNP or TDX do; verifying others works without",
    )
    context = click.get_current_context(silent=True)
    state = context.find_object(ShellState) if context is not None else None
    if state is None:
        return
    try:
        config = state.config
    except NovacronError:
        return  # that the configuration is broken is said by another finding
    settings = config.sections.get(SECTION)
    admitted = Admitted(config.node.state_dir)
    if not isinstance(settings, AttestationSettings):
        return
    for peer in admitted.peers():
        verdict = admitted.judge(peer, settings, utc_now())
        yield Finding(
            subject=f"attested {peer}",
            status="ok" if verdict.trusted else "broken",
            detail=verdict.family if verdict.trusted else verdict.reasons[0].what,
            hint="" if verdict.trusted else verdict.reasons[0].cure,
        )
