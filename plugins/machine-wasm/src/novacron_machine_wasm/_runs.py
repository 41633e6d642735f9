"""``runs.log``: when a machine executed on this node, for whoever wants to prove it."""

from __future__ import annotations

import os
import sys
import time
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


class RunLog:
    """Appends a line when the guest begins to execute and one when it has ended."""

    def __init__(self, path: Path, machine: str) -> None:
        self._path = path
        self._machine = machine
        self._open = False

    def _write(self, what: str) -> None:
        line = f"{what} {time.monotonic_ns()} {self._machine}\n".encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            handle = os.open(self._path, flags, 0o600)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            # A full disk, or no folder any more: the log is evidence, not what the machine obeys.
            sys.stderr.write(f"{self._path}: {error}\n")

    def begin(self) -> None:
        self._write("begin")
        self._open = True

    def end(self) -> None:
        if self._open:
            self._open = False
            self._write("end")


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
