"""``novacron doctor``: what works on this host, by asking every plugin."""

from __future__ import annotations

import attrs
import click
from novacron import ConfigError, Finding, NovacronError, ShellState
from rich.text import Text

COLOURS = {"ok": "green", "note": "yellow", "missing": "yellow", "broken": "red"}


def _own_findings(state: ShellState) -> list[Finding]:
    found = []
    for failure in state.manager.failures:
        found.append(
            Finding(
                subject=f"plugin {failure.name}",
                status="broken",
                detail=failure.cause,
                hint=failure.cure,
            )
        )
    try:
        config = state.config
    except ConfigError as error:
        found.append(
            Finding(subject="configuration", status="broken", detail=str(error), hint=error.hint)
        )
        return found
    where = str(config.path) if config.path else "no file, only defaults"
    found.append(Finding(subject="configuration", status="ok", detail=where))
    for domain in ("transport", "security", "compression", "consensus", "placement", "compliance"):
        try:
            detail = config.chosen(domain)
        except NovacronError as error:
            detail, hint = str(error), error.hint
            found.append(Finding(subject=domain, status="missing", detail=detail, hint=hint))
        else:
            found.append(Finding(subject=domain, status="ok", detail=detail))
    return found


@click.command("doctor")
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Look at this host and say what works, what is missing and what to do.

    Exit code 1 if anything is broken.
    """
    state: ShellState = ctx.obj
    findings = _own_findings(state)
    for plugin, answer, error in state.manager.call("novacron_register_findings"):
        if error is not None:
            detail = f"{type(error).__name__}: {error}"
            findings.append(Finding(subject=f"plugin {plugin}", status="broken", detail=detail))
        findings += answer or ()
    if state.json:
        state.print_json([attrs.asdict(finding) for finding in findings])
    else:
        rows = [
            (
                finding.subject,
                Text(finding.status, style=COLOURS.get(finding.status, "")),
                finding.detail,
                finding.hint,
            )
            for finding in findings
        ]
        state.table("This host", ("what", "status", "found", "next step"), rows)
    if any(finding.status == "broken" for finding in findings):
        ctx.exit(1)
