"""``novacron bench nemesis``."""

from __future__ import annotations

import click

from novacron_bench._wan_command import ended_in_order, shell_state


@click.command("nemesis")
@click.option("--minutes", type=click.FloatRange(0.05, 1440), default=2.0, show_default=True)
@click.option("--nodes", type=click.IntRange(3, 7), default=3, show_default=True)
@click.option("--seed", type=int, default=None, help="What is broken when; by default, by chance.")
@click.pass_context
def nemesis(ctx: click.Context, minutes: float, nodes: int, seed: int | None) -> None:
    """Break a raft cluster of real processes again and again while clients use it.

    `kill -9` of the leader or of any number, SIGSTOP, partitions (the leader alone, halves, one
    way), a disk without room. Every answer that a client got must be one that a single machine,
    doing one thing at a time, could have given, and every key must be readable at the end. The
    exit code is 1 if not. A seed repeats the faults, not the processes' timing.
    """
    import random
    import tempfile
    from pathlib import Path

    from novacron import InternalError

    from novacron_bench._nemesis import run

    state = shell_state(ctx)
    seed = random.randrange(1 << 32) if seed is None else seed
    state.err.print(f"seed {seed}", markup=False)
    with ended_in_order(), tempfile.TemporaryDirectory() as name:
        found = run(
            Path(name),
            size=nodes,
            seconds=minutes * 60,
            seed=seed,
            tell=lambda text: state.err.print(text, markup=False),
        )
    if state.json:
        state.print_json(found.to_json())
    else:
        rows = [
            ("operations that were answered", f"{found.operations:,}"),
            ("writes in doubt", f"{found.in_doubt:,}"),
            ("longest time without an answer", f"{found.longest_s:.1f} s"),
            *((f"fault: {kind}", count) for kind, count in found.faults.items()),
            ("keys that could not be read at the end", len(found.unread)),
            ("judged in", f"{found.check_s:.1f} s"),
            ("linearizable", "no" if found.violation else "yes"),
        ]
        state.table(f"{nodes} nodes, {minutes:g} minutes, seed {seed}", ("", ""), rows)
    if not found.held:
        raise InternalError(
            found.violation or f"{len(found.unread)} keys could not be read: {found.unread[0]}",
            hint=f"report it with --seed {seed} and this output",
        )
