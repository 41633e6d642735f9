"""``novacron bench attestation``."""

from __future__ import annotations

from pathlib import Path

import click

from novacron_bench._wan_command import shell_state


@click.command("attestation")
@click.option("--evidence", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="A folder with sev_snp/ and tdx/: reports, quotes, certificates.")  # fmt: skip
@click.option("--runs", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.pass_context
def attestation(ctx: click.Context, evidence: Path, runs: int) -> None:
    """Verify real SEV-SNP and TDX evidence, and play each fault on it.

    Ends with 1 if anything passed that must not, or the other way about.
    """
    from attrs import asdict

    from novacron_bench._attestation import cases, flips, rates

    state = shell_state(ctx)
    answers = list(cases(evidence))
    changed = list(flips(evidence))
    speed = rates(evidence, runs)
    good = all(one.right for one in answers) and not any(one.passed for one in changed)
    if state.json:
        found = {
            "good": good,
            "cases": [one.to_json() for one in answers],
            "flips": [asdict(one) for one in changed],
            "verifications_per_s": speed,
        }
        state.print_json(found)
    else:
        rows = [(one.what, one.wanted, one.got, "" if one.right else "WRONG") for one in answers]
        state.table("", ("evidence", "wanted", "got", ""), rows)
        for one in changed:
            state.console.print(
                f"{one.what}: {one.passed} of {one.changed} with a flipped bit passed "
                f"({one.per_s:.0f}/s of CPU time)"
            )
        for what, per_s in speed.items():
            state.console.print(f"{what}: {per_s:.0f} verifications/s of CPU time")
    if not good:
        ctx.exit(1)
