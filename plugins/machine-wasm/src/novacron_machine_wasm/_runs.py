"""``runs.log``: when a machine executed on this node, for whoever wants to prove it."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen


@frozen(kw_only=True)
class Run:
    """One stretch of execution, in CLOCK_MONOTONIC nanoseconds of the host.

    Attributes:
        machine: Its name.
        begin_ns: Before the first instruction.
        end_ns: After the last one; None while it runs, or if the process was killed.
    """

    machine: str
    begin_ns: int
    end_ns: int | None


def read_runs(path: Path) -> list[Run]:
    """The runs in a ``runs.log``, oldest first; none if there is no such file."""
    runs: list[Run] = []
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return runs
    for line in lines:
        what, at, machine = line.split(" ", 2)
        if what == "begin":
            runs.append(Run(machine=machine, begin_ns=int(at), end_ns=None))
        elif what == "end" and runs and runs[-1].end_ns is None:
            last = runs.pop()
            runs.append(Run(machine=last.machine, begin_ns=last.begin_ns, end_ns=int(at)))
    return runs
