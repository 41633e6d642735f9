"""Writes ``runs.log``, which `read_runs` reads."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


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
